"""What goes between the drafter and an engine's worker: how to draft, and a batch's drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """`stop_tokens` end a reply. A node less likely than `min_path_probability` to be accepted is not drafted; with
    `mean_drafted` that bound rises until drafts hold so many tokens on average, the root not counted."""

    stop_tokens: tuple[int, ...] = ()
    chain: bool = False
    min_path_probability: float = 0.03
    mean_drafted: float | None = None
    max_match: int = 64
    session_bytes: int = 2**30
    memory_bytes: int = 2**28  # of all namespaces' finished turns


class DraftBatch(NamedTuple):
    """A tree a row, best node first, so that cutting a row anywhere leaves the best tree of that size.

    tokens            int32 [n, max_width]; node 0 is the last verified token
    parents           int32 [n, max_width]; an earlier node, -1 for the root and for padding
    path_probability  float32 [n, max_width]; that the node and all before it on its path are accepted; 0 for padding
    num_nodes         int32 [n], at least 1

    The arrays are written again by the next call for as many requests.
    """

    tokens: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    path_probability: npt.NDArray[np.float32]
    num_nodes: npt.NDArray[np.int32]
