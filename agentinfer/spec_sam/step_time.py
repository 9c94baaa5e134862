"""How long a step takes, learned online: seconds by batch size, width and context, never falling in any of them.

A step verifies rows = batch_size x width tokens. Its time is modelled as

    base + verify * [width > 1] + request * (batch_size - 1) + f(rows) + (read + attend * (width - 1)) * context tokens

where f is piecewise linear in the rows, so that tile sizes and other steps of real hardware fit. No coefficient is
negative, which makes the time monotone in everything. Coefficients come from least squares on relative errors with
exponential forgetting, towards a prior that expects rows to cost, and neighbouring pieces of f to have similar slopes.
They are kept relative to a scale, which follows the machine's speed: what was learned of the proportions holds when all
becomes slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_KNOTS: Final = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024], np.float64)
_GAPS: Final = np.append(np.diff(_KNOTS), np.inf)
_NUM_FIXED: Final = 3 + len(_KNOTS)  # base, verify, request, then the slopes of f
_NUM_COEFFICIENTS: Final = _NUM_FIXED + 2  # read and attend, per 1,000 tokens of context

# In units of a plain step of one request with no context. Each deviation is what would surprise as much as one step
# that is off by `_NOISE`; a row is expected to cost what it does on a small CPU, which is more than on any GPU.
_PRIOR_MEAN: Final = np.array([1.0, 0.05, 0.02] + [0.08] * len(_KNOTS) + [0.05, 0.01])
_PRIOR_DEVIATION: Final = np.array([0.3, 0.1, 0.05] + [0.3] * len(_KNOTS) + [0.3, 0.1])
_SLOPE_CHANGE: Final = 0.05  # from one piece of f to the next
_NOISE: Final = 0.1

_FORGETTING: Final = 0.998  # an observation counts half after 350 others
_SUSPICIOUS: Final = 0.3  # a step this much slower than expected has to happen twice
_MOST_EXCESS: Final = 0.5  # that a step is believed to be slower than expected
_LEAST_BASE: Final = 0.05  # of the scale: a step with nothing to do still takes time
_SCALE_RATE: Final = 0.05
NUM_BUCKETS: Final = 16  # of batch sizes, by powers of two
_SWEEPS: Final = 2
_FIT_EVERY: Final = 16  # observations, after the first 64


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds at each width, linear in the batch's context tokens."""

    fixed: list[float]
    by_context: list[float]

    def at(self, index: int, context_tokens: float) -> float:
        return self.fixed[index] + self.by_context[index] * context_tokens


@dataclass(frozen=True, slots=True)
class _Pending:
    """An observation that the normal equations do not hold yet."""

    features: Floats  # the fixed ones
    width: int
    context_tokens: float
    expected_s: float
    step_s: float


class StepTimeModel:
    """Predicts the seconds of a step at each of `widths`. Deterministic: equal observations give equal predictions."""

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = np.array(widths, np.float64)
        self._index = {width: index for index, width in enumerate(widths)}
        self._excess = [[0.0] * len(widths) for _ in range(NUM_BUCKETS)]  # by which the latest of a kind was too slow
        self._precision = _prior_precision()
        self._gram = np.zeros((_NUM_COEFFICIENTS, _NUM_COEFFICIENTS))
        self._moment = np.zeros(_NUM_COEFFICIENTS)
        self._coefficients = _PRIOR_MEAN.copy()  # in units of `_scale_s`
        self._scale_s = 1.0
        self.num_observations = 0
        self._pending: list[_Pending] = []
        self._features: dict[int, Floats] = {}  # per batch size, [widths, fixed features]
        self._times: dict[int, _Times] = {}

    def seconds(self, batch_size: int, context_tokens: float) -> list[float]:
        """Expected seconds at each width; `context_tokens` is the sum over the batch. Before the first observation
        only the proportions mean anything."""
        times = self._times.get(batch_size) or self._tabulate(batch_size)
        return [a + b * context_tokens for a, b in zip(times.fixed, times.by_context, strict=True)]

    def observe(self, batch_size: int, width: int, context_tokens: float, step_seconds: float) -> bool:
        """Takes in one measured step; False where it did not count. Raises ValueError for another width, or a time that
        is not positive and finite.

        A step can be slower than its work by accident (a prefill in between, a busy neighbour, garbage collection) but
        never faster. So one that is far slower than expected counts only if the one before it, of the same width and
        about the same batch, was as well, and then as the faster of both, up to a limit: an accident changes nothing,
        two in a row little, and a machine that has become slower is followed all the same.
        """
        index = self._index.get(width)
        if index is None:
            raise ValueError(f"a step of width {width}; the widths are {list(self._index)}")
        if not 0.0 < step_seconds < float("inf"):
            raise ValueError(f"a step of {step_seconds} seconds (batch {batch_size}, width {width}): measure it again")
        times = self._times.get(batch_size) or self._tabulate(batch_size)
        if self.num_observations == 0:
            self._scale_s *= step_seconds / times.at(index, context_tokens)
            times = self._tabulate(batch_size)
        expected_s = times.at(index, context_tokens)
        self.num_observations += 1
        latest = self._excess[bucket(batch_size)]
        excess, previous = step_seconds / expected_s - 1.0, latest[index]
        latest[index] = excess
        if excess > _SUSPICIOUS:
            if previous <= _SUSPICIOUS:
                return False
            step_seconds = expected_s * (1.0 + min(excess, previous, _MOST_EXCESS))
        features = self._features[batch_size][index]
        self._pending.append(_Pending(features, width, context_tokens, expected_s, step_seconds))
        self._scale_s *= (step_seconds / expected_s) ** max(_SCALE_RATE, 1.0 / self.num_observations)
        if self.num_observations <= 64 or len(self._pending) >= _FIT_EVERY:
            self._take_in()
            self._fit()
        return True

    def state(self) -> Floats:
        """All that predictions depend on, for `restore` in another process, after which both go on alike."""
        self._take_in()
        self._times.clear()  # they may be of an earlier scale
        parts = [self._coefficients, self._moment, self._gram.ravel(), np.ravel(self._excess)]
        return np.concatenate([[self._scale_s, self.num_observations], *parts])

    def restore(self, state: Floats) -> None:
        """Raises ValueError for the state of a model with another number of widths."""
        sizes = [2, _NUM_COEFFICIENTS, _NUM_COEFFICIENTS, _NUM_COEFFICIENTS**2, NUM_BUCKETS * len(self._widths)]
        if state.shape != (sum(sizes),):
            raise ValueError(f"a step time model's state of shape {state.shape}; expected ({sum(sizes)},)")
        head, coefficients, moment, gram, excess = np.split(state, np.cumsum(sizes)[:-1])
        self._scale_s, self.num_observations = float(head[0]), int(head[1])
        self._coefficients, self._moment = coefficients.copy(), moment.copy()
        self._gram = gram.reshape(self._gram.shape).copy()
        self._excess = excess.reshape(NUM_BUCKETS, -1).tolist()
        self._pending.clear()
        self._times.clear()

    def _take_in(self) -> None:
        if not self._pending:
            return
        count = len(self._pending)
        rows = np.empty((count, _NUM_COEFFICIENTS))
        rows[:, :_NUM_FIXED] = [step.features for step in self._pending]
        rows[:, _NUM_FIXED] = [step.context_tokens / 1000.0 for step in self._pending]
        rows[:, _NUM_FIXED + 1] = [(step.width - 1) * step.context_tokens / 1000.0 for step in self._pending]
        weights = _FORGETTING ** (0.5 * np.arange(count - 1, -1, -1))
        weights /= [step.expected_s for step in self._pending]
        rows *= self._scale_s * weights[:, None]
        self._gram = _FORGETTING**count * self._gram + rows.T @ rows
        self._moment = _FORGETTING**count * self._moment + (weights * [step.step_s for step in self._pending]) @ rows
        self._pending.clear()

    def _fit(self) -> None:
        # Coordinate descent from the last solution: every sweep lowers the loss and keeps all coefficients >= 0.
        matrix = self._gram + self._precision
        target = self._moment + self._precision @ _PRIOR_MEAN
        solution = self._coefficients
        diagonal = matrix.diagonal().tolist()
        least = [_LEAST_BASE] + [0.0] * (_NUM_COEFFICIENTS - 1)
        for _ in range(_SWEEPS):
            gradient = matrix @ solution - target
            for index, curvature in enumerate(diagonal):
                old = float(solution[index])
                new = max(least[index], old - float(gradient[index]) / curvature)
                if new != old:
                    solution[index] = new
                    gradient += matrix[index] * (new - old)
        self._times.clear()

    def _tabulate(self, batch_size: int) -> _Times:
        features = self._features.get(batch_size)
        if features is None:
            features = self._features[batch_size] = _fixed_features(batch_size, self._widths)
        times = self._times[batch_size] = _times(features, self._widths, self._scale_s * self._coefficients)
        return times


def bucket(batch_size: int) -> int:
    """The kind of batch, by powers of two."""
    return min(batch_size.bit_length(), NUM_BUCKETS - 1)


def _fixed_features(batch_size: int, widths: Floats) -> Floats:
    features = np.empty((len(widths), _NUM_FIXED))
    features[:, 0] = 1.0
    features[:, 1] = widths > 1.0
    features[:, 2] = batch_size - 1.0
    features[:, 3:] = np.clip(batch_size * widths[:, None] - _KNOTS, 0.0, _GAPS)
    return features


def _times(fixed_features: Floats, widths: Floats, coefficients: Floats) -> _Times:
    read, attend = (coefficients[_NUM_FIXED:] / 1000.0).tolist()
    return _Times((fixed_features @ coefficients[:_NUM_FIXED]).tolist(), (read + attend * (widths - 1.0)).tolist())


def _prior_precision() -> Floats:
    precision = np.diag((_NOISE / _PRIOR_DEVIATION) ** 2)
    for left in range(3, _NUM_FIXED - 1):
        change = np.zeros(_NUM_COEFFICIENTS)
        change[left], change[left + 1] = 1.0, -1.0
        precision += (_NOISE / _SLOPE_CHANGE) ** 2 * np.outer(change, change)
    return precision
