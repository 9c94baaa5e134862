"""The order of eviction: expected recomputation saved per token held, least first.

A cached token is worth the chance that its session comes back, over the time it must be held until then: the hit
density of LHD (Beckmann, Chen, Cidon, NSDI 2018), with the time until a reuse taken from what the policy knows.

1. Leaves of no live session (ended, or superseded by a newer turn or an edited context): least recently used first.
2. Held sessions: reused when they are let in again, the eldest first; so the youngest goes first.
3. Members away at a tool: at the tool's return rate, given how long they have been away (`tool_latency`).
4. Members and visitors with a turn that waits: about to be reused.

A leaf in which several sessions end is worth what the most valuable of them is. It is an order, never a veto: every
leaf the engine has not locked is offered in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from agentinfer.radix_ext.paths import ROOT, PathTree

Rank = tuple[float, ...]


def victims(paths: PathTree, ascending: Iterable[str], rank: Callable[[str], Rank]) -> Iterator[int]:
    """Leaves, least valuable first; the caller removes each from `paths`, or leaves it where it cannot be evicted.

    `ascending` gives the live sessions, the least valuable first, and is asked only when the leaves of no session are
    exhausted; `rank` is what it is sorted by.
    """
    yield from paths.nobodys_leaves()
    for session in ascending:
        node = paths.frontier(session)
        while node != ROOT and paths.is_leaf(node) and _is_most_valuable(paths, node, session, rank):
            yield node
            if node in paths:
                break
            node = paths.frontier(session)


def _is_most_valuable(paths: PathTree, node: int, session: str, rank: Callable[[str], Rank]) -> bool:
    sessions = paths.sessions_at(node)
    return len(sessions) == 1 or all(rank(other) <= rank(session) for other in sessions if other != session)
