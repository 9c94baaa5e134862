"""How long a step takes, learned online: seconds by batch size, width and context, never falling in any of them.

A step verifies rows = batch_size x width tokens. Its time is modelled as

    base + verify * [width > 1] + request * (batch_size - 1) + f(rows) + (read + attend * (width - 1)) * context tokens

where f is piecewise linear in the rows, so that tile sizes and other steps of real hardware fit. No coefficient is
negative, which makes the time monotone in everything. Coefficients come from least squares on relative errors with
exponential forgetting, towards a prior that expects rows to cost, and neighbouring pieces of f to have similar slopes.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_SLOW_LIMIT: Final = 0.25  # a step is never counted as more than this much slower than expected: see `observe`
_SCALE_RATE: Final = 0.05
_SWEEPS: Final = 2


class StepTimeModel:
    """Predicts the seconds of a step at each of `widths`. Deterministic: equal observations give equal predictions."""

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = np.array(widths, np.float64)
        self._precision = _prior_precision()
        self._gram = np.zeros((_NUM_COEFFICIENTS, _NUM_COEFFICIENTS))
        self._moment = np.zeros(_NUM_COEFFICIENTS)
        self._coefficients = _PRIOR_MEAN.copy()
        self._scale_s = 1.0  # seconds of the prior's unit
        self.num_observations = 0
        self._fixed_features: dict[int, Floats] = {}
        self._tables: dict[int, tuple[list[float], list[float]]] = {}

    def seconds(self, batch_size: int, context_tokens: float) -> list[float]:
        """Expected seconds at each width; `context_tokens` is the sum over the batch. Before the first observation
        only the proportions mean anything."""
        table = self._tables.get(batch_size)
        if table is None:
            table = self._tables[batch_size] = self._tabulate(batch_size)
        fixed, by_context = table
        return [a + b * context_tokens for a, b in zip(fixed, by_context, strict=True)]

    def observe(self, batch_size: int, width: int, context_tokens: float, step_seconds: float) -> None:
        """Takes in one measured step. Raises ValueError for a time that is not positive and finite.

        A step can be slower than its work by accident (a prefill in between, a busy neighbour, garbage collection) but
        never faster, so what looks too fast counts fully and what looks too slow only up to a limit: one accident
        changes little, and a machine that has become slower is followed all the same.
        """
        if not 0.0 < step_seconds < float("inf"):
            raise ValueError(f"a step of {step_seconds} seconds (batch {batch_size}, width {width}): measure it again")
        features = _features(batch_size, width, context_tokens)
        prior_s = float(features @ _PRIOR_MEAN)
        if self.num_observations == 0:
            self._rescale(step_seconds / prior_s)
        expected_s = float(features @ self._coefficients)
        excess = step_seconds / expected_s - 1.0
        weight = 1.0 if excess <= _SLOW_LIMIT else _SLOW_LIMIT / excess
        features /= expected_s
        self._gram *= _FORGETTING
        self._gram += weight * np.outer(features, features)
        self._moment *= _FORGETTING
        self._moment += (weight * step_seconds / expected_s) * features
        drift = step_seconds / (self._scale_s * prior_s)
        self._scale_s *= min(max(drift, 0.5), 1.0 + _SLOW_LIMIT) ** _SCALE_RATE
        self.num_observations += 1
        if self.num_observations <= 64 or self.num_observations % 4 == 0:
            self._fit()

    def state(self) -> Floats:
        """All that predictions depend on, for `restore` in another process."""
        return np.concatenate(
            [[self._scale_s, self.num_observations], self._coefficients, self._moment, self._gram.ravel()]
        )

    def restore(self, state: Floats) -> None:
        size = _NUM_COEFFICIENTS
        if state.shape != (2 + 2 * size + size * size,):
            raise ValueError(f"state of shape {state.shape}, expected ({2 + 2 * size + size * size},)")
        self._scale_s, self.num_observations = float(state[0]), int(state[1])
        self._coefficients = state[2 : 2 + size].copy()
        self._moment = state[2 + size : 2 + 2 * size].copy()
        self._gram = state[2 + 2 * size :].reshape(size, size).copy()
        self._tables.clear()

    def _rescale(self, scale_s: float) -> None:
        self._scale_s = scale_s
        self._coefficients = _PRIOR_MEAN * scale_s

    def _fit(self) -> None:
        # Coordinate descent from the last solution: every sweep lowers the loss and keeps all coefficients >= 0.
        matrix = self._gram + self._precision / self._scale_s**2
        target = self._moment + (self._precision @ _PRIOR_MEAN) / self._scale_s
        solution = self._coefficients
        diagonal = matrix.diagonal().tolist()
        for _ in range(_SWEEPS):
            gradient = matrix @ solution - target
            for index, curvature in enumerate(diagonal):
                old = float(solution[index])
                new = max(0.0, old - float(gradient[index]) / curvature)
                if new != old:
                    solution[index] = new
                    gradient += matrix[index] * (new - old)
        self._tables.clear()

    def _tabulate(self, batch_size: int) -> tuple[list[float], list[float]]:
        features = self._fixed_features.get(batch_size)
        if features is None:
            features = np.stack([_features(batch_size, int(width), 0.0)[:_NUM_FIXED] for width in self._widths])
            self._fixed_features[batch_size] = features
        read, attend = self._coefficients[_NUM_FIXED:] / 1000.0
        fixed: list[float] = (features @ self._coefficients[:_NUM_FIXED]).tolist()
        return fixed, (read + attend * (self._widths - 1.0)).tolist()


def _features(batch_size: int, width: int, context_tokens: float) -> Floats:
    features = np.empty(_NUM_COEFFICIENTS)
    features[0] = 1.0
    features[1] = float(width > 1)
    features[2] = batch_size - 1.0
    np.clip(batch_size * width - _KNOTS, 0.0, _GAPS, out=features[3:_NUM_FIXED])
    features[_NUM_FIXED] = context_tokens / 1000.0
    features[_NUM_FIXED + 1] = (width - 1) * context_tokens / 1000.0
    return features


def _prior_precision() -> Floats:
    precision = np.diag((_NOISE / _PRIOR_DEVIATION) ** 2)
    for left in range(3, _NUM_FIXED - 1):
        change = np.zeros(_NUM_COEFFICIENTS)
        change[left], change[left + 1] = 1.0, -1.0
        precision += (_NOISE / _SLOPE_CHANGE) ** 2 * np.outer(change, change)
    return precision
