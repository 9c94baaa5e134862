"""Sampling weights on a GPU with FlashInfer's sorting-free filters (`flashinfer.sampling`)."""

from __future__ import annotations

import torch
from flashinfer.sampling import top_k_renorm_probs, top_p_renorm_probs

from agentinfer.kernels.sampling_weights.parameters import Sampling


def sampling_weights_flashinfer(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Contract as `sampling_weights`, but tokens tied at a filter's edge stay together; greedy rows keep one token."""
    weights = torch.softmax(logits.float() / sampling.temperature.view(-1, 1), dim=-1)
    kept = weights
    if sampling.top_k is not None:
        kept = top_k_renorm_probs(weights, sampling.top_k.view(-1).int().clamp(max=weights.shape[-1]))
    if sampling.top_p is not None:
        nucleus = top_p_renorm_probs(weights if sampling.joint else kept, sampling.top_p.view(-1).float())
        kept = torch.where(nucleus > 0, kept, 0.0)
    if sampling.min_p is not None:
        kept = torch.where(kept < kept.amax(-1, keepdim=True) * sampling.min_p.view(-1, 1), 0.0, kept)
    if sampling.top_k is not None:
        best = torch.zeros_like(kept).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        kept = torch.where(sampling.top_k.view(-1, 1) == 1, best, kept)
    return kept
