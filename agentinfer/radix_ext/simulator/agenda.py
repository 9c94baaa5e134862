"""Simulated time: what happens when, in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Agenda:
    """Runs callbacks in the order of their times; those of one moment in the order in which they were entered."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._entries: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time_s: float, callback: Callable[[], None]) -> None:
        """Calls back at `time_s`, which is not before now."""
        assert time_s >= self.now_s, f"{time_s} s is over: it is {self.now_s} s"
        self._count += 1
        heapq.heappush(self._entries, (time_s, self._count, callback))

    def run(self, after_each: Callable[[], None] | None = None) -> None:
        """Until nothing is left to happen; `after_each` is called after each callback."""
        while self._entries:
            self.now_s, _, callback = heapq.heappop(self._entries)
            callback()
            if after_each is not None:
                after_each()
