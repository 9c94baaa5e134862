"""An online logistic regression over the tokens around a proposal, in plain Python: specification, oracle and fallback
of csrc/correction.cpp.

Steps after Duchi, Hazan and Singer (2011), smaller the more a weight has moved. Equal to the compiled one to the last
bit.
"""

from __future__ import annotations

import math
from typing import Final

NUM_SLOTS: Final = 1 << 16
STEPS: Final = (0.5, 0.5, 0.5, 0.5, 0.5, 0.3)  # of each feature
MAX_SHIFT: Final = 2.5  # of the log-odds, in all

_MASK: Final = 0xFFFFFFFF

Features = tuple[int, ...]  # slots of the table, one for each of STEPS


class Correction:
    """One table of weights that the features of all proposals are hashed into."""

    def __init__(self) -> None:
        self.weights = [0.0] * NUM_SLOTS
        self.sums_of_squares = [0.0] * NUM_SLOTS  # of the gradients so far

    def odds(self, probability: float, features: Features) -> float:
        """The corrected log-odds of `probability`."""
        shift = 0.0
        for slot in features:
            shift += self.weights[slot]
        return logit(probability) + min(max(shift, -MAX_SHIFT), MAX_SHIFT)

    def learn(self, corrected: float, features: Features, came: bool) -> None:
        """The token at which `corrected` was estimated came, or did not."""
        error = float(came) - corrected
        for slot, step in zip(features, STEPS, strict=True):
            self.sums_of_squares[slot] += error * error
            self.weights[slot] += step * error / math.sqrt(1.0 + self.sums_of_squares[slot])


def features_of(token: int, previous: int, earlier: int, evidence: int) -> Features:
    """Of `token` proposed after `previous` and, before that, `earlier`; `evidence` says how it is supported."""
    hashes = (
        _mix(0, token),
        _mix(1, previous),
        _mix(_mix(2, previous), token),
        _mix(_mix(_mix(3, earlier), previous), token),
        _mix(_mix(4, earlier), token),
        _mix(5, evidence),
    )
    return tuple(each % NUM_SLOTS for each in hashes)


def logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability)) if probability > 0 else -math.inf


def _mix(seed: int, value: int) -> int:
    """In 32 bits."""
    mixed = (seed * 0x9E3779B1 ^ ((value + 0x7F4A7C15) & _MASK) * 0x85EBCA77) & _MASK
    mixed ^= mixed >> 15
    mixed = mixed * 0x2C1B3C6D & _MASK
    return mixed ^ mixed >> 13
