"""The shadow price of KV (paper, section 3): what a cached token is worth while more are wanted than there are.

    U = max(0, N - H)      z = D / (U + eps)      lambda = lambda_max * sigmoid(k * (z - 1))

N are tokens that could be had, free or evictable; H those of them that waiting turns will reuse, each tree node counted
once (counted once a request, as in the paper, a shared prefix alone drives U to 0 and the price to its limit); D is
what the waiting turns need anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pressure:
    """`price` is lambda, from 0 to `price_max`; `looseness` the paper's mix, 1 for a loose cache, 0 for a tight one."""

    price: float
    looseness: float


def pressure(
    obtainable_tokens: int, reused_tokens: int, demanded_tokens: int, price_max: float, slope: float
) -> Pressure:
    """The price for N, H and D in tokens; `price_max` is lambda_max and `slope` k."""
    unused = max(0, obtainable_tokens - reused_tokens)
    # One token is eps: with nothing unused any demand at all is out of proportion.
    z = demanded_tokens / (unused + 1)
    share = 1.0 / (1.0 + math.exp(-min(slope * (z - 1.0), 500.0)))
    return Pressure(price=price_max * share, looseness=1.0 - share)
