"""How fast the engine computes prompts, measured on the first rank's clock.

It reaches the policy by way of the HTTP process, which sends it with its news to every rank: a rank that used its own
measurement would decide otherwise than the others.
"""

from __future__ import annotations

from collections import deque

# Batches of fewer tokens take the time of a decode step, which says nothing of prompts.
MIN_BATCH_TOKENS = 64
# What was measured longer ago than this many tokens counts for less than half.
_HALF_LIFE_TOKENS = 50_000


class PrefillSpeed:
    """Tokens over seconds of the batches so far, older ones fading. Batches end in the order in which they begin."""

    def __init__(self) -> None:
        self._begun: deque[tuple[int, float]] = deque()
        self._free_s = 0.0
        self._tokens = 0.0
        self._seconds = 0.0

    def begin(self, num_tokens: int, now_s: float) -> None:
        """A batch that computes `num_tokens` of prompts was formed."""
        self._begun.append((num_tokens, now_s))

    def end(self, now_s: float) -> None:
        """The result of the batch that was begun first is there. Ignored where none was begun."""
        if not self._begun:
            return
        num_tokens, begun_s = self._begun.popleft()
        # Under overlap a batch is formed while the one before it still runs.
        seconds = now_s - max(begun_s, self._free_s)
        self._free_s = now_s
        if num_tokens < MIN_BATCH_TOKENS or seconds <= 0.0:
            return
        fading = 0.5 ** (num_tokens / _HALF_LIFE_TOKENS)
        self._tokens = self._tokens * fading + num_tokens
        self._seconds = self._seconds * fading + seconds

    @property
    def tokens_per_s(self) -> float | None:
        """None before anything was measured."""
        return self._tokens / self._seconds if self._seconds else None
