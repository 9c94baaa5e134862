"""How busy an engine is with this process's requests."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agentinfer.clock import Clock

# Over this time the share is taken.
_LOAD_WINDOW_S: Final = 10.0


class Load:
    """The share of the last seconds for which an engine worked on requests of ours. Others' are not seen from here."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running = 0
        self._share = 0.0
        self._at_s = clock.monotonic_s()

    @property
    def share(self) -> float:
        with self._lock:
            self._advance()
            return self._share

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._lock:
            self._advance()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._advance()
                self._running -= 1

    def _advance(self) -> None:
        now_s = self._clock.monotonic_s()
        kept = math.exp((self._at_s - now_s) / _LOAD_WINDOW_S)
        self._share = self._share * kept + (1.0 - kept) * (self._running > 0)
        self._at_s = now_s
