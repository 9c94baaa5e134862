"""Sampled verification of chains by FlashInfer's `chain_speculative_sampling`: rejection against a one-hot draft.

Same distribution as `verify_sampled`, but FlashInfer draws its own random numbers, needs drafts of full width and a
draft distribution as large as the target's; so it serves to compare with, not as the default.
"""

from __future__ import annotations

import torch
from flashinfer.sampling import chain_speculative_sampling

from agentinfer.kernels.tree import Verified


def verify_sampled_chain_flashinfer(
    candidates: torch.Tensor, probs: torch.Tensor, generator: torch.Generator | None = None
) -> Verified:
    """As `verify_sampled` on chains without padding; `probs` float32 [bs, width, vocab] must sum to 1."""
    batch_size, width = candidates.shape
    drafted = candidates[:, 1:].contiguous().int()
    one_hot = torch.zeros_like(probs[:, 1:]).scatter_(-1, drafted.unsqueeze(-1).long(), 1.0)
    unused = torch.zeros(batch_size, dtype=torch.int32, device=candidates.device)
    tokens, _, _ = chain_speculative_sampling(one_hot, drafted, probs, unused, unused.clone(), generator=generator)
    is_new = tokens >= 0
    rows = torch.arange(batch_size * width, dtype=torch.int32, device=candidates.device).view(batch_size, width)
    return Verified(
        torch.where(is_new, tokens, 0).view(-1), is_new.sum(1, dtype=torch.int32), torch.where(is_new, rows, -1)
    )
