"""The distribution of one gap as a scheduler asks about it: what is still to come, given what was waited already.

Within a bucket of `gap_histogram` the chance is taken to be spread evenly, so the cumulative curve is piecewise linear
and everything here is exact for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agentinfer.gap_histogram import BUCKETS_A_DOUBLING, NEVER, NUM_BUCKETS, UPPER_EDGES_S, bucket_of

Floats = NDArray[np.float64]

EDGES_S: Final[Floats] = np.array((0.0, *UPPER_EDGES_S))
"""Bucket b lies between EDGES_S[b] and EDGES_S[b + 1]."""
_WIDTHS_S: Final[Floats] = np.diff(EDGES_S)
_MIDDLES_S: Final[Floats] = EDGES_S[:-1] + _WIDTHS_S / 2
# Row: where one is (the middle of a bucket). Column: an edge ahead of it.
_IS_AHEAD: Final = np.triu(np.ones((NUM_BUCKETS, NUM_BUCKETS), dtype=bool))

LONGEST_WAIT_S: Final = float(_MIDDLES_S[-1])
"""Who waited longer (nine days) is answered as if it were this long."""
MEDIAN_OF_UNKNOWN_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class GapDistribution:
    """Chances by bucket, those of `NEVER` last; they are positive up to there and sum to 1.

    `survival` is the chance that the gap exceeds each of `EDGES_S`, `expected_wait_s` the mean of min(gap, edge).
    """

    chances: Floats
    survival: Floats
    expected_wait_s: Floats

    @classmethod
    def of(cls, weights: Floats) -> GapDistribution:
        """From weights of any positive sum. Raises ValueError when there is nothing or less than nothing in them."""
        total = float(weights.sum())
        if weights.shape != (NUM_BUCKETS + 1,) or not total > 0 or not math.isfinite(total) or weights.min() < 0:
            raise ValueError(f"expected {NUM_BUCKETS + 1} weights of a positive sum, got {weights.shape}, sum {total}")
        chances = weights / total
        # Summed from the far end, so that small chances there keep their digits.
        survival = np.cumsum(chances[::-1])[::-1]
        areas_s = _WIDTHS_S * (survival[:-1] + survival[1:]) / 2
        return cls(chances, survival, np.concatenate((np.zeros(1), np.cumsum(areas_s))))

    def exceeds(self, waited_s: float) -> float:
        """P(gap > `waited_s`)."""
        return float(np.interp(min(max(waited_s, 0.0), float(EDGES_S[-1])), EDGES_S, self.survival))

    def remaining_quantile_s(self, share: float, waited_s: float = 0.0) -> float:
        """The further seconds within which the session is back with chance `share`, given that it is not back yet.

        Infinite where it is more likely than 1 - `share` that the session never comes back.
        """
        waited_s = min(max(waited_s, 0.0), LONGEST_WAIT_S)
        target = self.exceeds(waited_s) * (1 - share)
        if target < self.survival[-1]:
            return math.inf
        # `survival` falls, so its negation rises; the first edge at which it is down to the target.
        edge = int(np.searchsorted(-self.survival, -target, side="left"))
        if edge == 0:
            return 0.0
        above, below = float(self.survival[edge - 1]), float(self.survival[edge])
        part = (above - target) / (above - below)
        at_s = float(EDGES_S[edge - 1]) + part * float(_WIDTHS_S[edge - 1])
        return max(0.0, at_s - waited_s)

    def expected_remaining_s(self, waited_s: float = 0.0) -> float:
        """The mean of the further seconds, given that the session is not back yet and does come back."""
        waited_s = min(max(waited_s, 0.0), LONGEST_WAIT_S)
        never = float(self.survival[-1])
        rest_s = float(EDGES_S[-1]) - waited_s
        area_s = float(self.expected_wait_s[-1]) - self._expected_wait_until(waited_s)
        returning = self.exceeds(waited_s) - never
        return (area_s - never * rest_s) / returning if returning > 0 else rest_s

    def return_rates(self) -> Floats:
        """By bucket, for one who waited until its middle: the highest chance of a return per expected second, in 1/s.

        That is the supremum over horizons h of P(gap <= w + h | gap > w) / E[min(gap - w, h) | gap > w], which is LHD's
        hit density for objects of one size (Beckmann, Chen, Cidon, "LHD: Improving Cache Hit Rate by Maximizing Hit
        Density", NSDI 2018) and the Gittins index of a job of unknown length. Within a bucket the ratio is quasi-convex
        in h, and it rises from h = 0, so it is highest at an edge.
        """
        at_middle = (self.survival[:-1] + self.survival[1:]) / 2
        wait_until_middle_s = self.expected_wait_s[:-1] + _WIDTHS_S * (self.survival[:-1] + at_middle) / 4
        returned = at_middle[:, None] - self.survival[None, 1:]
        held_s = self.expected_wait_s[None, 1:] - wait_until_middle_s[:, None]
        rates: Floats = np.max(returned / held_s, axis=1, where=_IS_AHEAD, initial=0.0)
        return rates

    def _expected_wait_until(self, waited_s: float) -> float:
        bucket = bucket_of(waited_s)
        start_s = float(EDGES_S[bucket])
        mean_survival = (float(self.survival[bucket]) + self.exceeds(waited_s)) / 2
        return float(self.expected_wait_s[bucket]) + (waited_s - start_s) * mean_survival


def broad_prior() -> Floats:
    """The chances before anything was seen: P(gap > t) = 1 / (1 + t / 3 s).

    Half of all gaps are over 3 s, a tenth over 27 s, a hundredth over 5 minutes, and who has waited w seconds waits
    w + 3 more with chance one half. Recorded agents' medians are 0.3 s to 9 s.
    """
    survival = 1 / (1 + EDGES_S / MEDIAN_OF_UNKNOWN_S)
    return np.append(survival[:-1] - survival[1:], survival[-1])


def slowest_of(members: Sequence[GapDistribution]) -> Floats:
    """The chances of the longest of independent gaps: those of a reply that called several tools at once."""
    all_back = np.prod([1 - member.survival for member in members], axis=0)
    none_lost = float(np.prod([1 - member.chances[NEVER] for member in members]))
    all_back[0] = 0.0
    # A product of rising curves rises; rounding alone could make a step of it fall.
    return np.append(np.maximum(np.diff(all_back), 0.0), max(0.0, 1 - none_lost))


def around(expected_bucket: int, doublings: int) -> Floats:
    """The chances of an expectation: a triangle that ends `doublings` below and above it, in the logarithm of time."""
    reach = doublings * BUCKETS_A_DOUBLING
    chances = np.zeros(NUM_BUCKETS + 1)
    for offset in range(-reach, reach + 1):
        bucket = min(max(expected_bucket + offset, 0), NUM_BUCKETS - 1)
        chances[bucket] += reach + 1 - abs(offset)
    return np.asarray(chances / chances.sum())
