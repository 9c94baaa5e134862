"""Which nodes of a batch's drafts are verified: the controller's width, spent where it is worth most."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

WidthOf = Callable[[np.ndarray, np.ndarray], int]


def uniform_nodes(
    path_probability: np.ndarray, num_nodes: np.ndarray, context_lens: np.ndarray, choose: WidthOf
) -> tuple[np.ndarray, int]:
    """(nodes of each request int [n], width chosen): every request brings the width, or its draft if that is smaller.

    `path_probability` float32 [n, max_width], `num_nodes` int [n], `context_lens` int64 [n];
    `choose(path_probability, context_lens)` is the controller's.
    """
    width = choose(path_probability, context_lens)
    return np.minimum(num_nodes, width), width


def pooled_nodes(
    path_probability: np.ndarray, num_nodes: np.ndarray, context_lens: np.ndarray, choose: WidthOf
) -> tuple[np.ndarray, int]:
    """As `uniform_nodes` where rows may be ragged: width times batch size is a budget for the best nodes of all drafts.

    The controller sees the batch's drafted nodes dealt out in order of probability, so that its first w columns are the
    best (w - 1) * n of them: what a ragged step with as many rows as a step of width w gains.
    """
    num_requests, max_width = path_probability.shape
    is_node = np.arange(1, max_width) < num_nodes[:, None]
    offered = np.where(is_node, path_probability[:, 1:], 0.0)
    # Stable, and requests side by side: of equal nodes the ones nearer to their roots come first, so no node is taken
    # without the one it hangs from.
    order = np.argsort(-offered.T.ravel(), kind="stable")
    dealt = np.ones_like(path_probability)
    dealt[:, 1:] = offered.T.ravel()[order].reshape(max_width - 1, num_requests).T
    width = choose(dealt, context_lens)
    taken = order[: (width - 1) * num_requests]
    is_taken = np.zeros(num_requests * (max_width - 1), dtype=bool)
    is_taken[taken] = True
    counts = (is_taken.reshape(max_width - 1, num_requests).T & is_node).sum(axis=1)
    return 1 + counts, width
