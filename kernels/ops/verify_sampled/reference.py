"""Sampled verification, the obvious way: draw from the target at each node, follow the child that was drawn."""

from __future__ import annotations

import torch

from agentinfer.kernels.tree import Verified


def verify_sampled_reference(
    candidates: torch.Tensor, weights: torch.Tensor, coins: torch.Tensor, parents: torch.Tensor
) -> Verified:
    """Contract as `verify_sampled`, with the parents always given."""
    batch_size, width = candidates.shape
    predict = torch.zeros(batch_size, width, dtype=torch.int32)
    accept_lens = torch.zeros(batch_size, dtype=torch.int32)
    accept_index = torch.full((batch_size, width), -1, dtype=torch.int32)
    for b in range(batch_size):
        children = torch.tensor([0])
        while len(children):
            node, depth = children[0], accept_lens[b].clone()
            cumulative = weights[b, node].double().cumsum(0)
            drawn = torch.nonzero(cumulative > coins[b, depth] * cumulative[-1])[0, 0]
            accept_index[b, depth] = b * width + node
            accept_lens[b] += 1
            predict[b, node] = drawn
            children = torch.nonzero((parents[b] == node) & (candidates[b] == drawn))[:, 0]
    return Verified(predict.flatten(), accept_lens, accept_index)
