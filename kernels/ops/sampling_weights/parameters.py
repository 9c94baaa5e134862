"""The sampling parameters of a batch's requests."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """Each request's sampling parameters, tensors [bs] (a last dimension of 1 is taken too); None: used by no request.

    `temperature` > 0 divides the logits. `top_k` keeps the k best tokens, 1 being greedy: the best token, among ties
    the lowest-numbered. `top_p` keeps a token unless those before it already hold more than p, `min_p` unless it has
    less than min_p times the best one's probability. Off means `top_k` >= vocabulary, `top_p` 1 and `min_p` 0.

    `joint`: top-p judges the full distribution, whatever top-k cut, as SGLang's plain sampler does (in
    `srt/layers/sampler.py`: torch, and FlashInfer's "joint" order, which it uses without min-p). Else top-p judges what
    top-k left, renormalised: FlashInfer's path with min-p, and `eagle_sample`, which ignores min-p.
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

    def to(self, device: torch.device) -> Sampling:
        """The same parameters on `device`."""

        def move(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values.to(device)

        return Sampling(self.temperature.to(device), move(self.top_k), move(self.top_p), move(self.min_p), self.joint)

    @property
    def is_filtered(self) -> bool:
        """Whether any request may lose tokens."""
        return not (self.top_k is None and self.top_p is None and self.min_p is None)
