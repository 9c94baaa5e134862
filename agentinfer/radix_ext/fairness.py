"""The bound on waiting: by when a turn runs, whatever it costs.

A held turn *visits*: it runs once without its session joining the working set. Were every held session to visit once in
W seconds, the engine would spend

    sum over held waiting turns of (tokens to recompute) / (prefill tokens a second) / W

of its time on recomputing their contexts. The automatic bound is the W at which that is `visit_share`, but no shorter
than `bound_refills` times what filling the cache takes: where little is held a short bound buys nobody anything. An
operator's `max_wait_s` replaces it. A turn's deadline is set when it arrives and is never moved; past it, turns go in
the order of their deadlines before all others, so that a turn waits at most for its bound and for those promised an
earlier time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from agentinfer.radix_ext.settings import SchedulingSettings


class Deadlines:
    """The promised times of waiting turns, the earliest first, and what the held ones would cost. Not thread-safe."""

    def __init__(self, settings: SchedulingSettings, capacity_tokens: int) -> None:
        self._settings = settings
        self._capacity_tokens = capacity_tokens
        self._promised: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._count = 0
        self._held: dict[str, int] = {}
        self._held_tokens = 0

    def __len__(self) -> int:
        return len(self._promised)

    def __iter__(self) -> Iterator[str]:
        return iter(self._promised)

    def use(self, settings: SchedulingSettings) -> None:
        """Settings with another speed of the engine; what was promised stands."""
        self._settings = settings

    def bound_s(self) -> float:
        """What a turn that arrives now is promised."""
        if self._settings.max_wait_s is not None:
            return self._settings.max_wait_s
        refills_s = self._settings.bound_refills * self._capacity_tokens / self._settings.prefill_tokens_per_s
        visits_s = self._held_tokens / self._settings.prefill_tokens_per_s
        return max(refills_s, visits_s / self._settings.visit_share)

    def promise(self, rid: str, arrived_s: float) -> None:
        """A turn waits that arrived at `arrived_s`."""
        assert rid not in self._promised, f"{rid} has a deadline already"
        self._count += 1
        deadline_s = arrived_s + self.bound_s()
        self._promised[rid] = deadline_s
        heapq.heappush(self._heap, (deadline_s, self._count, rid))

    def hold(self, rid: str, recompute_tokens: int) -> None:
        """The turn is held; to run it now would recompute so many tokens of its session's context."""
        self.let_in(rid)
        self._held[rid] = recompute_tokens
        self._held_tokens += recompute_tokens

    def let_in(self, rid: str) -> None:
        """The turn is held no longer; its deadline stands."""
        self._held_tokens -= self._held.pop(rid, 0)

    def settle(self, rid: str) -> None:
        """The turn waits no longer."""
        self._promised.pop(rid, None)
        self.let_in(rid)

    def next_s(self) -> float | None:
        """The earliest deadline."""
        self._drop_settled()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_s: float) -> str | None:
        """The turn with the earliest deadline if that has passed; its promise is to be kept now."""
        self._drop_settled()
        if not self._heap or self._heap[0][0] > now_s:
            return None
        rid = heapq.heappop(self._heap)[2]
        del self._promised[rid]
        return rid

    def _drop_settled(self) -> None:
        while self._heap and self._promised.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
