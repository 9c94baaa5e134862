"""A histogram of gaps in seconds that forgets: old gaps weigh less and less, and memory is fixed.

Buckets are logarithmic, so a quantile is at most one bucket's width off (a factor of 2 ** (1/4), 19%). A gap weighs 1
when it comes and half as much after every `half_life_gaps` further ones.

New gaps wait in a short list until they are a sixteenth of what is there, and are then taken in at once. So whoever
derives tables from the weights derives them anew only when those changed enough, and at the same gaps on every machine.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

SHORTEST_S: Final = 1e-3
BUCKETS_A_DOUBLING: Final = 4
NUM_BUCKETS: Final = 4 * 30  # up to 1e-3 s * 2 ** 30: twelve days
UPPER_EDGES_S: Final = tuple(SHORTEST_S * 2.0 ** (bucket / BUCKETS_A_DOUBLING) for bucket in range(NUM_BUCKETS))
"""A bucket holds the gaps above the edge before it, up to its own; the last one those beyond it as well."""
NEVER: Final = NUM_BUCKETS
"""Index of the weight of calls that the session never came back from."""

HALF_LIFE_GAPS: Final = 512
"""Short enough that a tool that changed is soon known anew. On recorded coding agents, whose tools do not change, half
of it costs 0.02 bits of log-likelihood a gap, and eight times as much gains 0.02."""
SETTLING_SHARE: Final = 16

# Weights below this are dropped: a gap is gone for good after ten halvings.
_LEAST_WEIGHT: Final = 2.0**-10


@dataclass(frozen=True, slots=True)
class GapSummary:
    """The gaps of one tool, in seconds. `count` is of all ever seen; the rest is of those not yet forgotten.

    `never_share` is the share of calls after which the session never came back; the other figures leave them out.
    """

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float
    never_share: float

    def as_dict(self) -> dict[str, float]:
        """The summary as a JSON object."""
        return {
            "count": self.count,
            "mean_s": round(self.mean_s, 3),
            "p50_s": round(self.p50_s, 3),
            "p90_s": round(self.p90_s, 3),
            "p99_s": round(self.p99_s, 3),
            "max_s": round(self.max_s, 3),
            "never_share": round(self.never_share, 4),
        }


class GapHistogram:
    """Weights of gaps by bucket. `max_s` is the longest gap ever seen, `count` the number of all ever seen."""

    __slots__ = ("_fresh", "_half_life_gaps", "_since_halving", "_total_s", "_weights", "count", "max_s", "version")

    def __init__(self, half_life_gaps: int = HALF_LIFE_GAPS) -> None:
        if half_life_gaps < 1:
            raise ValueError(f"half_life_gaps must be at least 1, got {half_life_gaps}")
        self._half_life_gaps = half_life_gaps
        self._weights = [0.0] * (NUM_BUCKETS + 1)
        self._fresh: list[int] = []
        self._since_halving = 0
        self._total_s = 0.0
        self.count = 0
        self.max_s = 0.0
        self.version = 0

    @property
    def weights(self) -> Sequence[float]:
        """By bucket, `NEVER` last; they change only when `version` does. Not to be written to."""
        return self._weights

    def observe(self, seconds: float) -> None:
        """Add one gap; a negative one, which a stepped clock can give, counts as zero."""
        seconds = max(seconds, 0.0)
        self.count += 1
        self._total_s += seconds
        self.max_s = max(self.max_s, seconds)
        self._take(bucket_of(seconds))

    def observe_never(self) -> None:
        """Add a call that the session never came back from."""
        self._take(NEVER)

    def merge(self, other: GapHistogram) -> None:
        """Add all gaps of another histogram, which is left as it was."""
        self._settle()
        self._weights = [mine + theirs for mine, theirs in zip(self._weights, other._current(), strict=True)]
        self._total_s += other._total_s
        self.count += other.count
        self.max_s = max(self.max_s, other.max_s)
        while sum(self._weights) > 2 * self._half_life_gaps:
            self._halve()

    def quantile(self, share: float) -> float | None:
        """The gap that `share` of the gaps do not exceed; None before the first gap.

        The answer is the upper edge of a bucket, or the longest gap where that is shorter.
        """
        weights = self._current()[:NEVER]
        # Rounding in the product must not ask for more than there is.
        wanted = share * sum(weights) * (1 - 1e-12)
        seen = 0.0
        for bucket, weight in enumerate(weights):
            seen += weight
            if weight and seen >= wanted:
                # The last bucket has no upper edge.
                return self.max_s if bucket == NUM_BUCKETS - 1 else min(UPPER_EDGES_S[bucket], self.max_s)
        return None

    def summary(self) -> GapSummary:
        """Count, mean and quantiles; all zero before the first gap."""
        p50_s, p90_s, p99_s = (self.quantile(share) or 0.0 for share in (0.5, 0.9, 0.99))
        weights = self._current()
        returned = sum(weights[:NEVER])
        mean_s = self._total_s / returned if returned else 0.0
        never_share = weights[NEVER] / (returned + weights[NEVER]) if weights[NEVER] else 0.0
        return GapSummary(self.count, mean_s, p50_s, p90_s, p99_s, self.max_s, never_share)

    def state(self) -> dict[str, Any]:
        """All there is to it, as a JSON object; the empty buckets are left out."""
        return {
            "weights": sparse(self._weights),
            "fresh": list(self._fresh),
            "since_halving": self._since_halving,
            "total_s": self._total_s,
            "count": self.count,
            "max_s": self.max_s,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], half_life_gaps: int = HALF_LIFE_GAPS) -> Self:
        """The inverse of `state`. Raises ValueError naming what is wrong."""
        made = cls(half_life_gaps)
        made._weights = dense(state, "weights", at_most=4 * half_life_gaps)
        for bucket in _listed(state, "fresh"):
            made._fresh.append(_checked_bucket(bucket, "fresh"))
        if len(made._fresh) > half_life_gaps or sum(made._weights) > 4 * half_life_gaps:
            raise ValueError(f"more gaps than a half-life of {half_life_gaps} leaves")
        made._since_halving = int(number_of(state, "since_halving", below=half_life_gaps))
        made._total_s = number_of(state, "total_s")
        made.count = int(number_of(state, "count"))
        made.max_s = number_of(state, "max_s")
        return made

    def _take(self, bucket: int) -> None:
        self._fresh.append(bucket)
        if len(self._fresh) * SETTLING_SHARE >= sum(self._weights) or len(self._fresh) >= self._half_life_gaps:
            self._settle()

    def _settle(self) -> None:
        self._weights = self._current()
        self._since_halving += len(self._fresh)
        self._fresh = []
        self.version += 1
        while self._since_halving >= self._half_life_gaps:
            self._since_halving -= self._half_life_gaps
            self._halve()

    def _halve(self) -> None:
        halved = (weight / 2 for weight in self._weights)
        self._weights = [weight if weight >= _LEAST_WEIGHT else 0.0 for weight in halved]
        self._total_s /= 2

    def _current(self) -> list[float]:
        """The weights with the gaps that wait to be taken in."""
        weights = list(self._weights)
        for bucket in self._fresh:
            weights[bucket] += 1
        return weights


def bucket_of(seconds: float) -> int:
    """The bucket that a gap falls into."""
    return min(NUM_BUCKETS - 1, bisect_left(UPPER_EDGES_S, seconds))


def sparse(weights: Sequence[float]) -> list[list[float]]:
    """Weights by bucket as a JSON list of [bucket, weight], without the empty ones."""
    return [[bucket, weight] for bucket, weight in enumerate(weights) if weight]


def dense(state: Mapping[str, Any], name: str, at_most: float) -> list[float]:
    """The inverse of `sparse` for a field of a JSON object. Raises ValueError naming the field."""
    weights = [0.0] * (NUM_BUCKETS + 1)
    for bucket, weight in _listed(state, name):
        weights[_checked_bucket(bucket, name)] = number_of({name: weight}, name, below=at_most)
    return weights


def number_of(state: Mapping[str, Any], name: str, below: float = math.inf) -> float:
    """The number in a field of a JSON object. Raises ValueError unless 0 <= it < `below`."""
    value = state.get(name)
    if type(value) not in (int, float) or not 0 <= value < below:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a number from 0 to below {below}, got {value!r:.80}")
    return float(value)  # type: ignore[arg-type]


def _listed(state: Mapping[str, Any], name: str) -> Sequence[Any]:
    found = state.get(name)
    if not isinstance(found, list):
        raise ValueError(f"{name}: expected a list, got {found!r:.80}")
    return found


def _checked_bucket(bucket: object, name: str) -> int:
    if type(bucket) is not int or not 0 <= bucket <= NEVER:
        raise ValueError(f"{name}: expected buckets from 0 to {NEVER}, got {bucket!r:.80}")
    return bucket
