"""Sampling weights, the obvious way: sort each row and zero what falls to a filter."""

from __future__ import annotations

import torch

from agentinfer.kernels.sampling_weights.parameters import Sampling


def sampling_weights_reference(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Contract as `sampling_weights`."""
    weights = torch.softmax(logits.float() / sampling.temperature.view(-1, 1), dim=-1)
    # A stable sort of the logits keeps the lowest-numbered of tied tokens first, also where the softmax makes ties.
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ordered = weights.gather(-1, order)
    kept = ordered.clone()
    if sampling.top_k is not None:
        kept[torch.arange(kept.shape[-1], device=kept.device) >= sampling.top_k.view(-1, 1)] = 0
    if sampling.top_p is not None:
        judged = ordered if sampling.joint else kept / kept.sum(-1, keepdim=True)
        kept[judged.cumsum(-1) - judged > sampling.top_p.view(-1, 1)] = 0
    if sampling.min_p is not None:
        kept[kept < kept[:, :1] * sampling.min_p.view(-1, 1)] = 0
    return torch.zeros_like(weights).scatter_(-1, order, kept)
