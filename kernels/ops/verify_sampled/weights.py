"""From logits to what a token is drawn from: temperature, top-k, top-p and min-p in SGLang's order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from agentinfer.kernels.tree import KernelInputError


@dataclass(frozen=True, slots=True)
class Sampling:
    """Each request's sampling parameters, tensors [bs] (a last dimension of 1 is taken too); None: used by no request.

    `top_k` 1 is greedy: the best token, among ties the lowest-numbered. Off means `top_k` >= vocabulary, `top_p` 1 and
    `min_p` 0.
    `joint`: top-k and top-p both judge the full distribution, as SGLang's plain sampler does (`srt/layers/sampler.py`,
    torch, and FlashInfer's "joint" order without min-p); else top-p judges what top-k left, as FlashInfer's path does
    where a request of the batch has min-p, and as `eagle_sample` does, which ignores min-p.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None
    min_p: torch.Tensor | None = None
    joint: bool = True

    def of(self, requests: torch.Tensor) -> Sampling:
        """The parameters of rows that belong to `requests`, int64 [n]."""

        def pick(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values.view(-1)[requests]

        temperature = self.temperature.view(-1)[requests]
        return Sampling(temperature, pick(self.top_k), pick(self.top_p), pick(self.min_p), self.joint)


def sampling_weights(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Weights float32 [n, vocab], proportional to the target distribution of each row of `logits` [n, vocab].

    A row need not sum to 1. Raises KernelInputError where `sampling` is not of n rows.
    """
    if sampling.temperature.numel() != logits.shape[0]:
        raise KernelInputError(f"sampling: expected {logits.shape[0]} rows, got {sampling.temperature.numel()}")
    weights = torch.softmax(logits.float() / sampling.temperature.view(-1, 1), dim=-1)
    if sampling.top_k is None and sampling.top_p is None and sampling.min_p is None:
        return weights
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    ordered = _cut(ordered, sampling)
    return torch.zeros_like(weights).scatter_(-1, order, ordered)


def _cut(ordered: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Zeros what falls to the filters; `ordered` is descending in each row."""
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    kept = ordered
    if sampling.top_k is not None:
        kept = kept.masked_fill(rank >= sampling.top_k.view(-1, 1), 0.0)
    if sampling.top_p is not None:
        judged = ordered if sampling.joint else kept / kept.sum(-1, keepdim=True)
        before = judged.cumsum(-1) - judged
        kept = kept.masked_fill(before > sampling.top_p.view(-1, 1), 0.0)
    if sampling.min_p is not None:
        kept = kept.masked_fill(kept < kept[:, :1] * sampling.min_p.view(-1, 1), 0.0)
    return kept
