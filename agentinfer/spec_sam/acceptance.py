"""How often drafted tokens are accepted, against what the drafter said: a monotone correction learned online.

A drafted node is accepted when the whole path to it is. Outcomes are counted by the node's stated path probability (a
bin) and its place in the draft (a group of ranks; for a chain, the depth), because overconfidence of single steps
compounds along a path. Until a group has outcomes of its own it leans on all groups together, those on what was stated.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.float32]

_BIN_EDGES: Final = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97])
_CENTRES: Final = np.array([0.01, 0.035, 0.075, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.935, 0.985])
_NUM_BINS: Final = len(_CENTRES)
_GROUP_STARTS: Final = (1, 2, 4, 8)  # ranks 1 | 2, 3 | 4 to 7 | 8 and more
_NUM_GROUPS: Final = len(_GROUP_STARTS)
_PRIOR_TRIALS: Final = 8.0  # how many outcomes the drafter's word is worth
_FORGETTING: Final = 0.995  # per batch of outcomes


class AcceptanceModel:
    """Maps stated to expected path probabilities: per rank a non-decreasing map of [0, 1] into itself, with 0 to 0."""

    def __init__(self, max_width: int) -> None:
        groups = np.searchsorted(_GROUP_STARTS, np.arange(max_width), side="right") - 1
        self._groups = np.maximum(groups, 0)  # the root's column is never used
        # One interpolation serves all ranks: group g's map lives on [2 g, 2 g + 1].
        self._shift = (2.0 * self._groups)[None, :]
        self._knots = np.concatenate([2.0 * g + np.concatenate([[0.0], _CENTRES, [1.0]]) for g in range(_NUM_GROUPS)])
        self._trials = np.zeros((_NUM_GROUPS, _NUM_BINS))
        self._stated = np.zeros((_NUM_GROUPS, _NUM_BINS))  # sum of the stated probabilities
        self._accepted = np.zeros((_NUM_GROUPS, _NUM_BINS))
        self._num_batches = 0
        self._values = self._fit()

    def correct(self, path_probability: Probabilities) -> Floats:
        """Expected acceptance of each node of a draft [n, width]; the root's column means nothing."""
        width = path_probability.shape[1]
        corrected: Floats = np.interp(path_probability + self._shift[:, :width], self._knots, self._values)
        return corrected

    def observe(self, path_probability: Probabilities, accepted: npt.NDArray[np.bool_]) -> None:
        """Takes in the outcome of verified drafts, both [n, width]; nodes of probability 0 are padding."""
        if path_probability.shape != accepted.shape:
            raise ValueError(f"outcomes of shape {accepted.shape} for drafts of shape {path_probability.shape}")
        width = path_probability.shape[1]
        stated = path_probability[:, 1:].ravel()
        cells = (self._groups[1:width] * _NUM_BINS + np.searchsorted(_BIN_EDGES, path_probability[:, 1:])).ravel()
        is_node = stated > 0.0
        shape, size = self._trials.shape, self._trials.size
        for table, weights in (
            (self._trials, is_node),
            (self._stated, stated),
            (self._accepted, accepted[:, 1:].ravel() & is_node),
        ):
            table *= _FORGETTING
            table += np.bincount(cells, weights, size).reshape(shape)
        self._num_batches += 1
        if self._num_batches <= 32 or self._num_batches % 8 == 0:
            self._values = self._fit()

    def state(self) -> Floats:
        """All that corrections depend on, for `restore` in another process."""
        tables = np.concatenate([self._trials, self._stated, self._accepted]).ravel()
        return np.concatenate([[self._num_batches], tables, self._values])

    def restore(self, state: Floats) -> None:
        size = self._trials.size
        if state.shape != (1 + 3 * size + self._values.size,):
            raise ValueError(f"state of shape {state.shape}, expected ({1 + 3 * size + self._values.size},)")
        self._num_batches = int(state[0])
        tables = state[1 : 1 + 3 * size].reshape(3, _NUM_GROUPS, _NUM_BINS)
        self._trials, self._stated, self._accepted = (table.copy() for table in tables)
        self._values = state[1 + 3 * size :].copy()

    def _fit(self) -> Floats:
        pooled = _shrunk(self._accepted.sum(0), self._stated.sum(0), _CENTRES, _CENTRES)
        pieces = []
        for group in range(_NUM_GROUPS):
            expected = _shrunk(self._accepted[group], self._stated[group], _CENTRES, pooled)
            monotone = np.minimum(_isotonic(expected, self._trials[group] + _PRIOR_TRIALS), 1.0)
            pieces.append(np.concatenate([[0.0], monotone, [min(monotone[-1] / _CENTRES[-1], 1.0)]]))
        return np.concatenate(pieces)


def _shrunk(accepted: Floats, stated: Floats, centres: Floats, prior: Floats) -> Floats:
    """Expected acceptance at each bin's centre: the observed proportion to what was stated, towards the prior's."""
    return centres * (accepted + _PRIOR_TRIALS * prior) / (stated + _PRIOR_TRIALS * centres)


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
