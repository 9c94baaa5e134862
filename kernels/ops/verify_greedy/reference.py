"""Greedy verification, the obvious way: follow the child whose token the target chose, until there is none."""

from __future__ import annotations

import torch

from agentinfer.kernels.tree import Verified


def verify_greedy_reference(candidates: torch.Tensor, target: torch.Tensor, parents: torch.Tensor) -> Verified:
    """Contract as `verify_greedy`, with the parents always given."""
    batch_size, width = candidates.shape
    predict = torch.zeros(batch_size, width, dtype=torch.int32)
    accept_lens = torch.zeros(batch_size, dtype=torch.int32)
    accept_index = torch.full((batch_size, width), -1, dtype=torch.int32)
    for b in range(batch_size):
        children = torch.tensor([0])
        while len(children):
            node = children[0]
            accept_index[b, accept_lens[b]] = b * width + node
            accept_lens[b] += 1
            predict[b, node] = target[b, node]
            children = torch.nonzero((parents[b] == node) & (candidates[b] == target[b, node]))[:, 0]
    return Verified(predict.flatten(), accept_lens, accept_index)
