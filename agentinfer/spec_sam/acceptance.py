"""How often drafted tokens are accepted, against what the drafter said: a monotone correction learned online.

A drafted node is accepted when the whole path to it is. Outcomes are counted in bins of the stated path probability;
what a bin's nodes came to, in proportion to what was stated of them, is leant towards the drafter's word and made
monotone. Depth is left out on purpose: confidence in single steps that is off by some power is off by the same power
for whole paths, so the path probability says it all, and one map learns faster than one a depth.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.float32]

_EDGES: Final = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97])
_CENTRES: Final = np.array([0.01, 0.035, 0.075, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.935, 0.985])
_KNOTS: Final = np.concatenate([[0.0], _CENTRES, [1.0]])
_PRIOR_TRIALS: Final = 8.0  # how many outcomes the drafter's word is worth, in each bin
_FORGETTING: Final = 0.995  # per batch of outcomes


class AcceptanceModel:
    """Maps stated to expected path probabilities, from [0, 1] into itself, never decreasing, with 0 to 0."""

    def __init__(self) -> None:
        self._trials = np.zeros(len(_CENTRES))
        self._stated = np.zeros(len(_CENTRES))  # sum of the stated probabilities
        self._accepted = np.zeros(len(_CENTRES))
        self._num_batches = 0
        self._values = self._fit()

    def correct(self, path_probability: Probabilities) -> Floats:
        """Expected acceptance of each node, in any shape."""
        corrected: Floats = np.interp(path_probability, _KNOTS, self._values)
        return corrected

    def observe(self, path_probability: Probabilities, accepted: npt.NDArray[np.bool_]) -> None:
        """Takes in what became of verified drafts, both [n, width], root included. Nodes of probability 0 are padding.
        Raises ValueError where the shapes differ."""
        if path_probability.shape != accepted.shape:
            raise ValueError(f"outcomes of shape {accepted.shape} for drafts of shape {path_probability.shape}")
        stated = path_probability[:, 1:].ravel()
        is_node = stated > 0.0
        bins = np.searchsorted(_EDGES, stated)
        outcomes = accepted[:, 1:].ravel() & is_node
        for totals, weights in ((self._trials, is_node), (self._stated, stated), (self._accepted, outcomes)):
            totals *= _FORGETTING
            totals += np.bincount(bins, weights, len(totals))
        self._num_batches += 1
        if self._num_batches <= 32 or self._num_batches % 8 == 0:
            self._values = self._fit()

    def state(self) -> Floats:
        """All that corrections depend on, for `restore` in another process."""
        return np.concatenate([self._trials, self._stated, self._accepted, self._values, [self._num_batches]])

    def restore(self, state: Floats) -> None:
        """Raises ValueError for anything but a `state()`."""
        size = len(_CENTRES)
        if state.shape != (3 * size + len(_KNOTS) + 1,):
            raise ValueError(f"an acceptance model's state of shape {state.shape}; expected ({4 * size + 3},)")
        self._trials, self._stated, self._accepted = (part.copy() for part in state[: 3 * size].reshape(3, size))
        self._values = state[3 * size : -1].copy()
        self._num_batches = int(state[-1])

    def _fit(self) -> Floats:
        prior = _PRIOR_TRIALS * _CENTRES
        expected = _CENTRES * (self._accepted + prior) / (self._stated + prior)
        monotone = np.minimum(_isotonic(expected, self._trials + _PRIOR_TRIALS), 1.0)
        return np.concatenate([[0.0], monotone, [min(monotone[-1] / _CENTRES[-1], 1.0)]])


def _isotonic(values: Floats, weights: Floats) -> Floats:
    """The closest non-decreasing sequence, by pooling adjacent violators."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        count = 1
        while blocks and blocks[-1][0] > value:
            left, left_weight, left_count = blocks.pop()
            value = (left * left_weight + value * weight) / (left_weight + weight)
            weight += left_weight
            count += left_count
        blocks.append((value, weight, count))
    return np.repeat([block[0] for block in blocks], [block[2] for block in blocks])
