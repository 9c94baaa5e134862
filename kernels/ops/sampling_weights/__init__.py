"""From logits to what a token is drawn from: temperature, top-k, top-p and min-p, as SGLang's sampler applies them."""

from __future__ import annotations

import torch

from agentinfer.kernels.dispatch import choose, has_flashinfer, on_first_call
from agentinfer.kernels.sampling_weights.cpu import sampling_weights_cpu
from agentinfer.kernels.sampling_weights.parameters import Sampling
from agentinfer.kernels.sampling_weights.reference import sampling_weights_reference
from agentinfer.kernels.tree import KernelInputError


def sampling_weights(logits: torch.Tensor, sampling: Sampling, *, implementation: str | None = None) -> torch.Tensor:
    """Weights float32 [n, vocab], proportional to the target distribution of each row of `logits` [n, vocab].

    A row's weights need not sum to 1. `sampling` has a row for each row of `logits`, which is left as it was. Raises
    KernelInputError where they do not fit.
    """
    if logits.dim() != 2 or sampling.temperature.numel() != logits.shape[0]:
        raise KernelInputError(
            f"logits: expected [{sampling.temperature.numel()}, vocab] as the sampling parameters, "
            f"got {list(logits.shape)}"
        )
    if implementation is None and logits.device.type == "cuda":
        implementation = "flashinfer" if sampling.is_filtered and has_flashinfer() else "reference"
    return choose("sampling_weights", IMPLEMENTATIONS, logits.device, implementation)(logits, sampling)


IMPLEMENTATIONS = {
    "reference": sampling_weights_reference,
    "cpu": sampling_weights_cpu,
    "flashinfer": on_first_call(f"{__name__}.flashinfer_renorm", "sampling_weights_flashinfer"),
}

__all__ = ["IMPLEMENTATIONS", "Sampling", "sampling_weights"]
