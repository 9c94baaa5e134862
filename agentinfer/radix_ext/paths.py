"""Which cached nodes the sessions' contexts pass: a mirror of the prefix cache's tree, small enough to reason over.

A session's *frontier* is the deepest cached node of its context. Only leaves can be evicted, so what an eviction costs
is decided by the sessions whose frontier the leaf is; when it goes, they end in its parent.

        ROOT ── system prompt ─┬─ task 1 ── turn 1 ── turn 2      <- frontier of session a
                               └─ task 2 ── turn 1                <- frontier of sessions b, c
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

ROOT: Final = -1


class Claim(IntEnum):
    """Why a session needs its cached context: a turn of it waits, or it belongs to the working set."""

    WAITING = 0
    WORKING = 1


@dataclass(slots=True)
class PathNode:
    """A run of cached tokens. `end` counts tokens from the root to its end; `claims` the sessions below, by `Claim`."""

    id: int
    parent: PathNode | None
    num_tokens: int
    end: int
    num_children: int = 0
    claims: list[int] = field(default_factory=lambda: [0] * len(Claim))
    last_use: int = 0
    queued_use: int = 0
    sessions: set[str] = field(default_factory=set)
    is_cached: bool = True


class PathTree:
    """Nodes, and where each session's context ends among them. Node ids are the caller's. Not thread-safe.

    `claimed_tokens[claim]` counts the cached tokens that at least one session with that claim needs, each node once.
    With `Claim.WAITING` this is the paper's H (section 3), which counts a shared prefix once for every request.
    """

    def __init__(self) -> None:
        self._root = PathNode(ROOT, None, 0, 0)
        self._nodes: dict[int, PathNode] = {ROOT: self._root}
        self._frontier: dict[str, PathNode] = {}
        self._claims: tuple[set[str], ...] = tuple(set() for _ in Claim)
        self._nobodys: list[tuple[int, int]] = []  # heap of (last use, node id); may hold entries that are out of date
        self._uses = 0
        self.claimed_tokens = [0] * len(Claim)
        self._moved: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._nodes) - 1

    def __contains__(self, node: int) -> bool:
        return node in self._nodes

    def add(self, node: int, parent: int, num_tokens: int) -> None:
        """A new leaf `node` of `num_tokens` under `parent`."""
        above = self._nodes[parent]
        assert node not in self._nodes, f"node {node} is there already"
        added = PathNode(node, above, num_tokens, above.end + num_tokens)
        above.num_children += 1
        self._nodes[node] = added
        self.touch(node)

    def split(self, node: int, upper: int, upper_tokens: int) -> None:
        """`upper` takes the first `upper_tokens` of `node` and becomes its parent. Sessions that end in `node` stay."""
        lower = self._nodes[node]
        above = lower.parent
        assert above is not None, "the root cannot be split"
        assert 0 < upper_tokens < lower.num_tokens, f"split of {lower.num_tokens} tokens at {upper_tokens}"
        made = PathNode(upper, above, upper_tokens, above.end + upper_tokens, 1, [*lower.claims], lower.last_use)
        lower.parent, lower.num_tokens = made, lower.num_tokens - upper_tokens
        self._nodes[upper] = made

    def remove(self, node: int) -> None:
        """Leaf `node` left the cache: its sessions now end in its parent."""
        gone = self._nodes.pop(node)
        above = gone.parent
        assert above is not None, "the root cannot be removed"
        assert gone.num_children == 0, f"node {node} has {gone.num_children} children"
        gone.is_cached = False
        above.num_children -= 1
        for claim in Claim:
            if gone.claims[claim]:
                self.claimed_tokens[claim] -= gone.num_tokens
        for session in gone.sessions:
            self._frontier[session] = above
            self._moved[session] = None
        above.sessions |= gone.sessions
        self._note_if_nobodys(above)

    def place(self, session: str, node: int) -> None:
        """The session's context is cached up to the end of `node` and no longer where it was before."""
        target = self._nodes[node]
        before = self._frontier.get(session)
        if before is target:
            return
        held = [claim for claim in Claim if session in self._claims[claim]]
        if before is not None:
            self._mark(before, held, -1)
            before.sessions.discard(session)
            self._note_if_nobodys(before)
        self._frontier[session] = target
        self._moved[session] = None
        target.sessions.add(session)
        self._mark(target, held, 1)

    def forget(self, session: str) -> None:
        """The session has ended: what only it used is nobody's."""
        for claim in Claim:
            self.release(claim, session)
        before = self._frontier.pop(session, None)
        if before is not None:
            before.sessions.discard(session)
            self._note_if_nobodys(before)

    def claim(self, claim: Claim, session: str) -> None:
        """The session needs what is cached of its context; nothing changes where it has the claim."""
        if session not in self._claims[claim]:
            self._claims[claim].add(session)
            self._mark(self._frontier.get(session, self._root), (claim,), 1)

    def release(self, claim: Claim, session: str) -> None:
        """The session gives the claim up, if it has it."""
        if session in self._claims[claim]:
            self._claims[claim].discard(session)
            self._mark(self._frontier.get(session, self._root), (claim,), -1)

    def touch(self, node: int) -> None:
        """A request used `node`; it goes last among the nodes that are nobody's."""
        self._uses += 1
        touched = self._nodes[node]
        touched.last_use = self._uses
        self._note_if_nobodys(touched)

    def take_moved(self) -> list[str]:
        """Sessions whose cached tokens changed since the last call, some of which may be gone."""
        moved = list(self._moved)
        self._moved.clear()
        return moved

    def cached_tokens(self, session: str) -> int:
        """Tokens of the session's context that are cached, counted from its start."""
        frontier = self._frontier.get(session)
        return 0 if frontier is None else frontier.end

    def shared_tokens(self, session: str, claim: Claim) -> int:
        """Cached tokens of the session's context that sessions with `claim` need anyway, counted from its start."""
        step = self._frontier.get(session, self._root)
        while step.parent is not None and not step.claims[claim]:
            step = step.parent
        return step.end

    def frontier(self, session: str) -> int:
        """The node in which the session's cached context ends; `ROOT` when nothing of it is cached."""
        return self._frontier.get(session, self._root).id

    def sessions_at(self, node: int) -> frozenset[str]:
        """Sessions that end in `node`; of a leaf, all that would miss it."""
        return frozenset(self._nodes[node].sessions)

    def is_leaf(self, node: int) -> bool:
        return node != ROOT and self._nodes[node].num_children == 0

    def parent(self, node: int) -> int:
        above = self._nodes[node].parent
        assert above is not None, "the root has no parent"
        return above.id

    def num_tokens(self, node: int) -> int:
        return self._nodes[node].num_tokens

    def end(self, node: int) -> int:
        """Tokens from the root to the end of `node`."""
        return self._nodes[node].end

    def nobodys_leaves(self) -> Iterator[int]:
        """Leaves in which no session ends, least recently used first; removing the current one while iterating is fine.

        What the caller leaves in place is offered again the next time.
        """
        kept: list[tuple[int, int]] = []
        try:
            while self._nobodys:
                entry = heapq.heappop(self._nobodys)
                node = self._nodes.get(entry[1])
                if node is None or node.queued_use != entry[0]:
                    continue
                if node.last_use != entry[0] or not _is_nobodys(node):
                    node.queued_use = 0
                    self._note_if_nobodys(node)
                    continue
                kept.append(entry)
                yield node.id
                if not node.is_cached:
                    kept.pop()
        finally:
            for entry in kept:
                if entry[1] in self._nodes:
                    heapq.heappush(self._nobodys, entry)

    def check_integrity(self) -> None:
        """Recompute every derived count. Raises AssertionError naming the node and the broken rule."""
        children = dict.fromkeys(self._nodes, 0)
        claims = {node: [0] * len(Claim) for node in self._nodes}
        for node in self._nodes.values():
            if node.parent is not None:
                children[node.parent.id] += 1
                assert node.end == node.parent.end + node.num_tokens, f"node {node.id} ends at {node.end}"
                assert self._nodes.get(node.parent.id) is node.parent, f"node {node.id} hangs on a removed parent"
        for session, frontier in self._frontier.items():
            assert session in frontier.sessions, f"{session} is not listed at its frontier {frontier.id}"
            for claim in Claim:
                step: PathNode | None = frontier if session in self._claims[claim] else None
                while step is not None:
                    claims[step.id][claim] += 1
                    step = step.parent
        listed = sum(len(node.sessions) for node in self._nodes.values())
        assert listed == len(self._frontier), f"{listed} sessions listed, {len(self._frontier)} placed"
        queued = {node for _, node in self._nobodys}
        for node in self._nodes.values():
            assert node.num_children == children[node.id], f"node {node.id} counts {node.num_children} children"
            assert node is self._root or node.claims == claims[node.id], f"node {node.id} counts claims {node.claims}"
            assert not _is_nobodys(node) or node.id in queued, f"leaf {node.id} is nobody's but would never be offered"
        for claim in Claim:
            recounted = sum(node.num_tokens for node in self._nodes.values() if claims[node.id][claim])
            counted = self.claimed_tokens[claim]
            assert counted == recounted, f"{counted} tokens claimed as {claim.name}, recounted {recounted}"

    def _mark(self, node: PathNode, claims: Iterable[Claim], change: int) -> None:
        for claim in claims:
            step: PathNode | None = node
            while step is not None:
                before = step.claims[claim]
                step.claims[claim] = before + change
                if not before:
                    self.claimed_tokens[claim] += step.num_tokens
                elif not before + change:
                    self.claimed_tokens[claim] -= step.num_tokens
                step = step.parent

    def _note_if_nobodys(self, node: PathNode) -> None:
        if _is_nobodys(node) and node.queued_use != node.last_use:
            node.queued_use = node.last_use
            heapq.heappush(self._nobodys, (node.last_use, node.id))


def _is_nobodys(node: PathNode) -> bool:
    return node.parent is not None and not node.num_children and not node.sessions
