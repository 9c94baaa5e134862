"""What a drafter learns, in plain Python: the specification of csrc/draft_model.cpp, its oracle, and its fallback.

Every operation on a probability happens in the same order as there, in doubles, so all that is learned is equal to the
last bit. Not for several threads.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agentinfer.spec_sam.reference import _check_flat, _checked_tokens
from agentinfer.spec_sam.reference_correction import NUM_SLOTS, Correction

NUM_KINDS: Final = 4  # of sources: a session's own text, related, memory, retrieved

_NUM_LEVELS: Final = 4  # escapes are learned apart for the longest match and the next ones; all beyond count as one
_LENGTH_BOUNDS: Final = (1, 2, 3, 4, 6, 9, 14, 24, 40, 63)  # upper ends of all buckets but the last
_DEGREE_BOUNDS: Final = (1, 2, 3, 6)
_OCCURRENCE_BOUNDS: Final = (1, 2, 3, 6, 12, 40)
_BUCKET_LENGTH: Final = (1.0, 2.0, 3.0, 4.0, 5.5, 8.0, 12.0, 20.0, 32.0, 52.0, 64.0)  # for the priors
_BUCKET_DEGREE: Final = (1.0, 2.0, 3.0, 5.0, 10.0)
_BUCKET_OCCURRENCES: Final = (1.0, 2.0, 3.0, 5.0, 9.0, 25.0, 80.0)

_PRIOR_TRIALS: Final = 4.0
_MAX_TRIALS: Final = 400.0
_POINT_PRIOR_TRIALS: Final = 20.0
_MAX_POINT_TRIALS: Final = 2000.0
_LOWEST_LOGIT: Final = -6.0
_LOGIT_STEP: Final = 0.5
_NUM_POINTS: Final = 25
_WEIGHT_STEP: Final = 0.02
_MAX_WEIGHT: Final = 8.0


@dataclass(slots=True)
class _Rate:
    """How often something happened: `hits` of `trials`, both halved beyond a limit so that old traffic fades."""

    hits: float
    trials: float

    def learn(self, hits: float, trials: float, max_trials: float) -> None:
        self.hits += hits
        self.trials += trials
        if self.trials > max_trials:
            self.hits *= 0.5
            self.trials *= 0.5

    @property
    def value(self) -> float:
        return self.hits / self.trials


class DraftModel:
    """What drafting has learned about its sources; shared by all streams of a server.

    `stop_tokens` end a reply: nothing is drafted behind them.
    """

    def __init__(self, stop_tokens: Sequence[int] = ()) -> None:
        self._stop_tokens = frozenset(_checked_tokens(np.array(stop_tokens, dtype=np.int32)))
        self._weights = [math.log(length) for _ in range(NUM_KINDS) for length in _BUCKET_LENGTH]
        self._escapes = [
            _Rate(_PRIOR_TRIALS * _escape_prior(length, degree, occurrences), _PRIOR_TRIALS)
            for _ in range(NUM_KINDS * _NUM_LEVELS)
            for length in _BUCKET_LENGTH
            for degree in _BUCKET_DEGREE
            for occurrences in _BUCKET_OCCURRENCES
        ]
        logits = [_LOWEST_LOGIT + _LOGIT_STEP * point for point in range(_NUM_POINTS)]
        self._calibration = [
            _Rate(_POINT_PRIOR_TRIALS / (1.0 + math.exp(-each)), _POINT_PRIOR_TRIALS) for each in logits
        ]
        self.correction = Correction()

    def learned(self) -> npt.NDArray[np.float64]:
        """All that was learned: the weights of the sources, then pairs: hits and trials of each rate, weight and sum of
        squares of each slot of the correction."""
        values = list(self._weights)
        for rate in self._escapes + self._calibration:
            values += (rate.hits, rate.trials)
        for pair in zip(self.correction.weights, self.correction.sums_of_squares, strict=True):
            values += pair
        return np.array(values, dtype=np.float64)

    def restore(self, values: npt.NDArray[np.float64]) -> None:
        """Takes what `learned` gave; ValueError, with nothing changed, for a wrong size or values out of range."""
        _check_flat(values, np.dtype(np.float64), "values")
        num_weights = len(self._weights)
        num_rates = len(self._escapes) + len(self._calibration)
        expected = num_weights + 2 * (num_rates + NUM_SLOTS)
        if len(values) != expected:
            raise ValueError(
                f"a learned draft model has {expected} numbers, got {len(values)}; it was written by another version: "
                "start without it"
            )
        numbers: list[float] = values.tolist()
        for i, number in enumerate(numbers):
            if not math.isfinite(number):
                raise ValueError(f"learned draft model: value {i} is {number:g}, not a finite number; start without it")
        weights, paired = numbers[:num_weights], numbers[num_weights:]
        pairs = list(zip(paired[::2], paired[1::2], strict=True))
        rates, slots = pairs[:num_rates], pairs[num_rates:]
        for i, weight in enumerate(weights):
            if abs(weight) > _MAX_WEIGHT:
                raise ValueError(
                    f"learned draft model: weight {i} is {weight:g}, expected -{_MAX_WEIGHT:g} to {_MAX_WEIGHT:g}; "
                    "start without it"
                )
        for i, (hits, trials) in enumerate(rates):
            if not 0 < trials <= _MAX_POINT_TRIALS or not 0 <= hits <= trials:
                raise ValueError(f"learned draft model: rate {i} is {hits:g} of {trials:g}; start without it")
        for i, (_, squares) in enumerate(slots):
            if squares < 0:
                raise ValueError(
                    f"learned draft model: slot {i} has a negative sum of squares, {squares:g}; start without it"
                )
        self._weights = weights
        restored = [_Rate(hits, trials) for hits, trials in rates]
        self._escapes, self._calibration = restored[: len(self._escapes)], restored[len(self._escapes) :]
        self.correction.weights = [weight for weight, _ in slots]
        self.correction.sums_of_squares = [squares for _, squares in slots]

    def stops(self, token: int) -> bool:
        return token in self._stop_tokens

    def escape(self, context: int) -> float:
        """The probability that the next token is none of the continuations of a match; see `escape_context`."""
        return self._escapes[context].value

    def learn_escape(self, context: int, escaped: bool) -> None:
        self._escapes[context].learn(float(escaped), 1.0, _MAX_TRIALS)

    def weight(self, kind: int, length: int) -> float:
        """A source's weight before the softmax, with a match of `length`, more than 0."""
        return self._weights[_weight_index(kind, length)]

    def learn_weight(self, kind: int, length: int, surprise: float) -> None:
        moved = self._weights[_weight_index(kind, length)] + _WEIGHT_STEP * surprise
        self._weights[_weight_index(kind, length)] = min(max(moved, -_MAX_WEIGHT), _MAX_WEIGHT)

    def calibrated(self, log_odds: float) -> float:
        """An estimate as tokens drafted at it really came, interpolated between two points of log-odds."""
        point, fraction = _place_of(log_odds)
        below, above = self._calibration[point : point + 2]
        return (1.0 - fraction) * below.value + fraction * above.value

    def learn_calibration(self, log_odds: float, came: bool) -> None:
        point, fraction = _place_of(log_odds)
        for rate, share in zip(self._calibration[point : point + 2], (1.0 - fraction, fraction), strict=True):
            rate.learn(share if came else 0.0, share, _MAX_POINT_TRIALS)


def _escape_prior(length: float, degree: float, occurrences: float) -> float:
    by_count = 0.3 * degree / (occurrences + 0.5 * degree)
    return min(0.9, by_count + 0.6 / (1.0 + 0.7 * length))


def escape_context(kind: int, level: int, length: int, degree: int, occurrences: int) -> int:
    """Where the escape of such a match is counted; `level` 0 is the longest match that has continuations."""
    context = kind * _NUM_LEVELS + min(level, _NUM_LEVELS - 1)
    context = context * len(_BUCKET_LENGTH) + bisect_left(_LENGTH_BOUNDS, length)
    context = context * len(_BUCKET_DEGREE) + bisect_left(_DEGREE_BOUNDS, degree)
    return context * len(_BUCKET_OCCURRENCES) + bisect_left(_OCCURRENCE_BOUNDS, occurrences)


def _weight_index(kind: int, length: int) -> int:
    return kind * len(_BUCKET_LENGTH) + bisect_left(_LENGTH_BOUNDS, length)


def _place_of(log_odds: float) -> tuple[int, float]:
    """Between which two points of the calibration: the lower one, and how far to the upper one."""
    at = (log_odds - _LOWEST_LOGIT) / _LOGIT_STEP
    inside = min(max(at, 0.0), (_NUM_POINTS - 1) - 1e-9)
    return int(inside), inside - int(inside)
