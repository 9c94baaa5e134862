"""Computing a prompt's KV piece by piece, so that no turn ever waits for it.

A piece is short, and while turns run the engine is left to them for nine times as long as the piece took. When no turn
runs, as while an agent's tool does, the pieces follow each other at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from agentinfer.clock import Clock

# While turns run, this share of the time may be the warming's.
DUTY_SHARE: Final = 0.1
# What a piece may take, by the speed of the last ones: about two decode steps of a small model on a CPU.
PIECE_S: Final = 0.05
_FIRST_TOKENS: Final = 256
# On a CPU a request of less takes as long: about 0.15 s, whatever its length.
_MIN_TOKENS: Final = 128
_MAX_TOKENS: Final = 4096
# How much more than its own piece may be computed before it counts as the earlier ones' being evicted.
SLACK_TOKENS: Final = 64
_MAX_EVICTIONS: Final = 3


class WarmingError(Exception):
    """The KV cannot be kept in the cache."""


class Pace:
    """Who may use the engine: one piece at a time, whosever it is, and none while turns run until the last is paid for.

    Lives on the HTTP server's event loop.
    """

    def __init__(self, clock: Clock, duty_share: float = DUTY_SHARE) -> None:
        self._clock = clock
        self._rest_per_s = (1.0 - duty_share) / duty_share
        self._num_turns = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._one = asyncio.Lock()
        self._free_at_s = float("-inf")

    def turn_begun(self) -> None:
        """A turn is in the engine, or on its way there."""
        self._num_turns += 1
        self._is_idle.clear()

    def turn_finished(self) -> None:
        """A turn that was begun has ended, however."""
        self._num_turns -= 1
        if self._num_turns == 0:
            self._is_idle.set()

    async def run(self, piece: Callable[[], Awaitable[int]]) -> tuple[int, float]:
        """Runs `piece` when it may; its result and the seconds it took."""
        async with self._one:
            while (rest_s := self._free_at_s - self._clock.monotonic_s()) > 0 and not self._is_idle.is_set():
                # Not wait_for: when its own wait is over, it forgets that its caller was cancelled (Python < 3.12).
                with suppress(TimeoutError):
                    async with asyncio.timeout(rest_s):
                        await self._is_idle.wait()
            started_s = self._clock.monotonic_s()
            try:
                result = await piece()
            finally:
                took_s = self._clock.monotonic_s() - started_s
                self._free_at_s = started_s + took_s * (1.0 + self._rest_per_s)
            return result, took_s


class Stride:
    """How many tokens a piece has: what the engine computes in `PIECE_S`, from the last pieces' speed."""

    def __init__(self) -> None:
        self.num_tokens = _FIRST_TOKENS

    def observe(self, computed_tokens: int, took_s: float) -> None:
        """A piece computed so many tokens. Those found in the cache say nothing about the speed."""
        if computed_tokens < _MIN_TOKENS // 2 or took_s <= 0:
            return
        fits = int(computed_tokens * PIECE_S / took_s)
        self.num_tokens = max(_MIN_TOKENS, min(_MAX_TOKENS, 2 * self.num_tokens, fits))


@dataclass(slots=True)
class Warmed:
    """What one job has put into the cache so far: the tokens of its longest prompt, and how many were computed."""

    ids: Sequence[int] = field(default=(), repr=False)
    computed_tokens: int = 0
    num_pieces: int = 0


async def warm(
    ids: Sequence[int],
    warmed: Warmed,
    pace: Pace,
    stride: Stride,
    compute: Callable[[int], Awaitable[int]],
    num_known: int = 0,
) -> None:
    """Puts the KV of `ids` into the cache; `compute(n)` does so for the first n and says how many it had to compute.

    What `warmed` has of them is left out, and the first `num_known`, which some other prompt has put there. Cancelling
    stops it after the piece that runs. Raises WarmingError where the cache gives up the pieces as fast as they come,
    and whatever `compute` raises.
    """
    done = max(common_length(ids, warmed.ids), num_known)
    num_evictions = 0
    while done < len(ids):
        end = min(len(ids), done + stride.num_tokens)
        computed, took_s = await pace.run(lambda end=end: compute(end))  # type: ignore[misc]
        stride.observe(computed, took_s)
        warmed.ids = ids[:end]
        warmed.computed_tokens += computed
        warmed.num_pieces += 1
        if computed > end - done + SLACK_TOKENS:
            num_evictions += 1
            if num_evictions == _MAX_EVICTIONS:
                raise WarmingError("the prefix cache has no room for it: what was computed is evicted at once")
        done = end


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts have in common at their beginning."""
    for index, (mine, other) in enumerate(zip(first, second, strict=False)):
        if mine != other:
            return index
    return min(len(first), len(second))
