"""Evictions that stock SGLang has, over a path tree, and a time to live: which leaf goes first.

A use of a session's context is a use of the whole path to its frontier, so a node is as recent as the latest of all
that were ever below it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Final

from agentinfer.radix_ext.paths import ROOT, PathTree

_Entry = tuple[int, int, int]  # rank, use, node


class LeastRecentlyUsed:
    """Stock `lru`. It knows leaves by `used` alone, which is to be called whenever a session's context has grown."""

    def __init__(self, paths: PathTree) -> None:
        self._paths = paths
        self._heap: list[_Entry] = []  # one entry a node; its use may be out of date, never ahead
        self._queued: set[int] = set()
        self._last_use: dict[int, int] = {}
        self._uses = 0

    def used(self, session: str, now_s: float) -> None:
        """The session's context was used, up to its frontier."""
        node = self._paths.frontier(session)
        if node != ROOT:
            self._uses += 1
            self._note_use(node, self._uses, now_s)
            self._push_leaf(node)

    def ended(self, session: str) -> None:
        """The session comes back no more. Stock evictions do not hear of it."""

    def victims(self, now_s: float) -> Iterator[int]:
        """Leaves, the first to go first. What the caller leaves in place is offered again the next time."""
        paths = self._paths
        kept: list[_Entry] = []
        offered: tuple[int, int] | None = None
        try:
            while self._heap:
                entry = heapq.heappop(self._heap)
                node = entry[2]
                self._queued.discard(node)
                if node not in paths or not paths.is_leaf(node):
                    continue
                if self._last_use[node] != entry[1]:
                    self._push_leaf(node)
                    continue
                kept.append(entry)
                if self._is_deferred(node, now_s):
                    continue
                offered = node, paths.parent(node)
                yield node
                self._after(offered)
                offered = None
        finally:
            # The caller stops asking once it has room: what it took last is gone too.
            if offered is not None:
                self._after(offered)
            for entry in kept:
                if entry[2] in paths:
                    self._push_leaf(entry[2])

    def _rank(self, node: int) -> int:
        """Leaves of a lower rank go first, whenever they were used."""
        return 0

    def _is_deferred(self, node: int, now_s: float) -> bool:
        """Whether the leaf is not to be offered now."""
        return False

    def _note_use(self, node: int, use: int, now_s: float) -> None:
        self._last_use[node] = max(self._last_use.get(node, 0), use)

    def _inherit(self, parent: int, node: int) -> None:
        """`node`, which is evicted, was below `parent`."""
        self._last_use[parent] = max(self._last_use.get(parent, 0), self._last_use[node])

    def _forget(self, node: int) -> None:
        del self._last_use[node]

    def _after(self, offered: tuple[int, int]) -> None:
        node, parent = offered
        if node in self._paths:
            return
        if parent != ROOT:
            self._inherit(parent, node)
            self._push_leaf(parent)
        self._forget(node)

    def _push_leaf(self, node: int) -> None:
        if node not in self._queued and self._paths.is_leaf(node):
            self._queued.add(node)
            heapq.heappush(self._heap, (self._rank(node), self._last_use[node], node))


class TailOptimised(LeastRecentlyUsed):
    """Stock `tlru` (Zhang et al., arXiv:2510.15152): tails that a next prefill can recompute in time go first.

    A context whose longest length was L needs L + `next_prompt_tokens` - `threshold_tokens` cached tokens; what lies
    beyond goes before everything else. SGLang has no defaults for the two: here they are a chunk, and a quarter of one.
    """

    def __init__(self, paths: PathTree, threshold_tokens: int = 4096, next_prompt_tokens: int = 1024) -> None:
        super().__init__(paths)
        self._slack_tokens = threshold_tokens - next_prompt_tokens
        self._longest: dict[int, int] = {}

    def _rank(self, node: int) -> int:
        start = self._paths.end(node) - self._paths.num_tokens(node)
        return -1 if start >= max(self._longest[node] - self._slack_tokens, 0) else 0

    def _note_use(self, node: int, use: int, now_s: float) -> None:
        super()._note_use(node, use, now_s)
        self._longest[node] = max(self._longest.get(node, 0), self._paths.end(node))

    def _inherit(self, parent: int, node: int) -> None:
        super()._inherit(parent, node)
        self._longest[parent] = max(self._longest.get(parent, 0), self._longest[node])

    def _forget(self, node: int) -> None:
        super()._forget(node)
        del self._longest[node]


class TimeToLive(LeastRecentlyUsed):
    """What a live session used less than `seconds` ago goes last (CacheTTL, Continuum; soft: an order, not a veto)."""

    def __init__(self, paths: PathTree, seconds: float = 2.0) -> None:
        super().__init__(paths)
        self._seconds = seconds
        self._used_at_s: dict[int, float] = {}
        self._defers = True

    def ended(self, session: str) -> None:
        node = self._paths.frontier(session)
        if node in self._used_at_s:
            self._used_at_s[node] = -math.inf

    def victims(self, now_s: float) -> Iterator[int]:
        self._defers = True
        yield from super().victims(now_s)
        self._defers = False
        yield from super().victims(now_s)

    def _is_deferred(self, node: int, now_s: float) -> bool:
        return self._defers and now_s < self._used_at_s[node] + self._seconds

    def _note_use(self, node: int, use: int, now_s: float) -> None:
        super()._note_use(node, use, now_s)
        self._used_at_s[node] = now_s

    def _inherit(self, parent: int, node: int) -> None:
        super()._inherit(parent, node)
        self._used_at_s[parent] = max(self._used_at_s.get(parent, -math.inf), self._used_at_s[node])

    def _forget(self, node: int) -> None:
        super()._forget(node)
        del self._used_at_s[node]


EVICTIONS: Final[dict[str, Callable[[PathTree], LeastRecentlyUsed]]] = {
    "lru": LeastRecentlyUsed,
    "tlru": TailOptimised,
    "ttl": TimeToLive,
}
