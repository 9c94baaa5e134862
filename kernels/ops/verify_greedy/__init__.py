"""Greedy verification of drafts, chain or tree: how far does each draft agree with what the target chose?"""

from __future__ import annotations

import torch

from agentinfer.kernels.dispatch import choose, on_first_call
from agentinfer.kernels.tree import KernelInputError, Verified, check_tree, explicit_parents
from agentinfer.kernels.verify_greedy.cpu import verify_greedy_cpu
from agentinfer.kernels.verify_greedy.reference import verify_greedy_reference


def verify_greedy(
    candidates: torch.Tensor,
    target: torch.Tensor,
    parents: torch.Tensor | None = None,
    *,
    num_nodes: torch.Tensor | None = None,
    implementation: str | None = None,
) -> Verified:
    """The path of each draft that the target model would have taken itself, and its next token there.

    `candidates` int32 or int64 [bs, width] are the drafted tokens, `target` int32 or int64 [bs, width] the target's
    choice behind each node. `parents` int32 or int64 [bs, width], or None for chains; `num_nodes` [bs] cuts drafts
    shorter than the width (with parents, -1 marks padding as well). Among children with one token the lowest-numbered
    is followed. Same results as SGLang's `verify_tree_greedy`. Raises KernelInputError for shapes that do not fit.
    """
    check_tree("candidates", candidates, parents, num_nodes)
    if target.shape != candidates.shape:
        raise KernelInputError(f"target: expected {list(candidates.shape)}, got {list(target.shape)}")
    return choose("verify_greedy", IMPLEMENTATIONS, candidates.device, implementation)(
        candidates, target, parents, num_nodes
    )


def _reference(
    candidates: torch.Tensor, target: torch.Tensor, parents: torch.Tensor | None, num_nodes: torch.Tensor | None
) -> Verified:
    return verify_greedy_reference(candidates, target, explicit_parents(candidates, parents, num_nodes))


IMPLEMENTATIONS = {
    "reference": _reference,
    "cpu": verify_greedy_cpu,
    "triton": on_first_call(f"{__name__}.triton_kernel", "verify_greedy_triton"),
}
