"""Greedy verification for small batches on a CPU: a walk over Python lists, which beats a dozen torch calls."""

from __future__ import annotations

import torch

from agentinfer.kernels.tree import Verified


def verify_greedy_cpu(
    candidates: torch.Tensor,
    target: torch.Tensor,
    parents: torch.Tensor | None,
    num_nodes: torch.Tensor | None,
) -> Verified:
    """Contract as `verify_greedy`. Costs a visit a node between one accepted node and the next, nothing more."""
    batch_size, width = candidates.shape
    real = num_nodes.tolist() if num_nodes is not None else [width] * batch_size
    tokens, wanted = candidates.tolist(), target.tolist()
    parent_rows = parents.tolist() if parents is not None else [range(-1, width - 1)] * batch_size
    predict, accept_index, accept_lens = [0] * (batch_size * width), [], []
    for b in range(batch_size):
        drafts, choices, parent_of, first_row = tokens[b], wanted[b], parent_rows[b], b * width
        node, path = 0, [first_row]
        choice = predict[first_row] = choices[0]
        for child in range(1, real[b]):
            # A child has a higher number than its parent, so one pass upwards meets the whole path.
            if parent_of[child] == node and drafts[child] == choice:
                node = child
                path.append(first_row + node)
                choice = predict[first_row + node] = choices[node]
        accept_lens.append(len(path))
        accept_index.append(path + [-1] * (width - len(path)))
    return Verified(
        torch.tensor(predict, dtype=torch.int32),
        torch.tensor(accept_lens, dtype=torch.int32),
        torch.tensor(accept_index, dtype=torch.int32),
    )
