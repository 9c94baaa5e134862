"""Positions, links and attention masks of a batch of draft trees, from their parents and context lengths."""

from __future__ import annotations

from typing import Literal

import torch

from agentinfer.kernels.dispatch import choose, on_first_call
from agentinfer.kernels.tree import KernelInputError, TreeLayout, check_tree, is_chain
from agentinfer.kernels.tree_layout.cpu import packed_mask_cpu, tree_layout_cpu
from agentinfer.kernels.tree_layout.reference import packed_mask_reference, tree_layout_reference

MaskForm = Literal["none", "tree", "packed"]


def tree_layout(
    parents: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    mask: MaskForm = "tree",
    chain: bool | None = None,
    context_lens_sum: int | None = None,
    implementation: str | None = None,
) -> TreeLayout:
    """How the engine runs the target over these trees: see `TreeLayout`.

    `parents` int32 or int64 [bs, width], -1 for root and padding; `context_lens` [bs], verified tokens in front of
    node 0. `mask`: "tree" builds `mask`, "packed" `packed_mask`, "none" neither. A batch of chains gets no mask at all
    unless `chain=False`; `chain` None finds out, which on a GPU waits for the device, as does the size of a packed mask
    without `context_lens_sum`. Raises KernelInputError for shapes that do not fit.
    """
    check_tree("parents", parents, None, None)
    if context_lens.shape != parents.shape[:1]:
        raise KernelInputError(f"context_lens: expected [{parents.shape[0]}], got {list(context_lens.shape)}")
    if mask not in ("none", "tree", "packed"):
        raise KernelInputError(f"mask: expected none, tree or packed, got {mask!r}")
    chain = is_chain(parents) if chain is None else chain
    return choose("tree_layout", IMPLEMENTATIONS, parents.device, implementation)(
        parents, context_lens, "none" if chain else mask, chain, context_lens_sum
    )


def _reference(
    parents: torch.Tensor, context_lens: torch.Tensor, mask: MaskForm, chain: bool, context_lens_sum: int | None
) -> TreeLayout:
    positions, next_token, next_sibling, tree_mask = tree_layout_reference(parents, context_lens)
    packed, indptr = packed_mask_reference(tree_mask, context_lens) if mask == "packed" else (None, None)
    return TreeLayout(
        positions.flatten(),
        torch.arange(parents.numel()).view(parents.shape),
        next_token,
        next_sibling,
        chain,
        tree_mask if mask == "tree" else None,
        packed,
        indptr,
    )


def _cpu(
    parents: torch.Tensor, context_lens: torch.Tensor, mask: MaskForm, chain: bool, context_lens_sum: int | None
) -> TreeLayout:
    positions, next_token, next_sibling, tree_mask = tree_layout_cpu(parents, context_lens, mask != "none")
    packed, indptr = None, None
    if mask == "packed":
        assert tree_mask is not None
        packed, indptr = packed_mask_cpu(tree_mask, context_lens)
    return TreeLayout(
        positions.view(-1),
        torch.arange(parents.numel()).view(parents.shape),
        next_token,
        next_sibling,
        chain,
        tree_mask if mask == "tree" else None,
        packed,
        indptr,
    )


IMPLEMENTATIONS = {
    "reference": _reference,
    "cpu": _cpu,
    "triton": on_first_call(f"{__name__}.triton_kernel", "tree_layout_triton"),
}
