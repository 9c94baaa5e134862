"""For what share of the recent past something was busy: a mean in which the past fades."""

from __future__ import annotations

import math
from typing import Final

from agentinfer.clock import Clock

_FADING_S: Final = 30.0


class BusyShare:
    """Counts who is at work; `share` forgets with a time constant of `fading_s`."""

    def __init__(self, clock: Clock, fading_s: float = _FADING_S) -> None:
        self._clock = clock
        self._fading_s = fading_s
        self._share = 0.0
        self._num_working = 0
        self._updated_s = clock.monotonic_s()

    @property
    def num_working(self) -> int:
        return self._num_working

    def begin(self) -> None:
        self._update()
        self._num_working += 1

    def end(self) -> None:
        """Ends what `begin` began."""
        self._update()
        self._num_working -= 1

    @property
    def share(self) -> float:
        """From 0 to 1."""
        self._update()
        return self._share

    def _update(self) -> None:
        now_s = self._clock.monotonic_s()
        kept = math.exp(-(now_s - self._updated_s) / self._fading_s)
        self._share = kept * self._share + (1.0 - kept) * bool(self._num_working)
        self._updated_s = now_s
