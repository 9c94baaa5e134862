"""Lossless sampling through a draft of fixed tokens, chain or tree.

The draft has no distribution of its own, so the exact rule is the simplest one: draw a token from the target at the
node; where a child carries it, go there; else it is the step's last token. Each new token is then drawn from the
target's distribution given the tokens before it, whatever was drafted.
"""

from __future__ import annotations

import torch

from agentinfer.kernels.dispatch import choose, on_first_call
from agentinfer.kernels.sampling_weights import Sampling, sampling_weights
from agentinfer.kernels.tree import KernelInputError, Verified, check_tree, explicit_parents
from agentinfer.kernels.verify_sampled.cpu import verify_sampled_cpu
from agentinfer.kernels.verify_sampled.reference import verify_sampled_reference


def verify_sampled(
    candidates: torch.Tensor,
    weights: torch.Tensor,
    coins: torch.Tensor,
    parents: torch.Tensor | None = None,
    *,
    num_nodes: torch.Tensor | None = None,
    implementation: str | None = None,
) -> Verified:
    """Draws each request's next tokens, as far as its draft foresaw them and one more.

    `candidates`, `parents`, `num_nodes` as in `verify_greedy`. `weights` float32 [bs, width, vocab] is proportional to
    the target distribution behind each node (`sampling_weights` makes them). `coins` float32 [bs, width] in [0, 1) are
    uniform; coin d decides the request's d-th new token, whichever node it comes from, so with a coin tied to a
    position the tokens do not depend on the draft at all. Raises KernelInputError for shapes that do not fit.
    """
    check_tree("candidates", candidates, parents, num_nodes)
    _check_rows(candidates, weights.shape[:-1], "weights")
    _check_rows(candidates, coins.shape, "coins")
    return choose("verify_sampled", IMPLEMENTATIONS, candidates.device, implementation)(
        candidates, weights, coins, parents, num_nodes
    )


def verify_sampled_logits(
    candidates: torch.Tensor,
    logits: torch.Tensor,
    sampling: Sampling,
    coins: torch.Tensor,
    parents: torch.Tensor | None = None,
    *,
    num_nodes: torch.Tensor | None = None,
    implementation: str | None = None,
) -> Verified:
    """As `verify_sampled`, from `logits` [bs * width, vocab] and the requests' parameters.

    On a CPU weights are computed for the visited rows only. Requests with top-k 1 take the best token, so greedy and
    sampled requests can share a batch. `logits` is left as it was.
    """
    check_tree("candidates", candidates, parents, num_nodes)
    batch_size, width = candidates.shape
    _check_rows(candidates, coins.shape, "coins")
    if logits.dim() != 2 or logits.shape[0] != batch_size * width:
        raise KernelInputError(f"logits: expected [{batch_size * width}, vocab], got {list(logits.shape)}")
    if candidates.device.type == "cpu" and implementation in (None, "cpu"):

        def weights_of(requests: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
            return sampling_weights(logits[requests * width + nodes], sampling.of(requests))

        return verify_sampled_cpu(candidates, weights_of, coins, parents, num_nodes)
    requests = torch.arange(batch_size, device=logits.device).repeat_interleave(width)
    for_weights = "reference" if implementation == "reference" else None
    weights = sampling_weights(logits, sampling.of(requests), implementation=for_weights).view(batch_size, width, -1)
    return verify_sampled(candidates, weights, coins, parents, num_nodes=num_nodes, implementation=implementation)


def _check_rows(candidates: torch.Tensor, seen: torch.Size, what: str) -> None:
    if seen != candidates.shape:
        raise KernelInputError(f"{what}: expected {list(candidates.shape)} in front, got {list(seen)}")


def _reference(
    candidates: torch.Tensor,
    weights: torch.Tensor,
    coins: torch.Tensor,
    parents: torch.Tensor | None,
    num_nodes: torch.Tensor | None,
) -> Verified:
    return verify_sampled_reference(candidates, weights, coins, explicit_parents(candidates, parents, num_nodes))


def _cpu(
    candidates: torch.Tensor,
    weights: torch.Tensor,
    coins: torch.Tensor,
    parents: torch.Tensor | None,
    num_nodes: torch.Tensor | None,
) -> Verified:
    return verify_sampled_cpu(candidates, lambda requests, nodes: weights[requests, nodes], coins, parents, num_nodes)


IMPLEMENTATIONS = {
    "reference": _reference,
    "cpu": _cpu,
    "triton": on_first_call(f"{__name__}.triton_kernel", "verify_sampled_triton"),
}

__all__ = ["IMPLEMENTATIONS", "Sampling", "verify_sampled", "verify_sampled_logits"]
