"""Draft trees as every op here takes them, and what verification and layout return.

A batch of drafts is padded to one width. Node 0 of a request is its last verified token (the root), nodes 1.. are
drafted tokens, and `parents[b, i] < i` is the node that node i follows; -1 marks the root and padding. A chain is the
tree with parents 0, 1, 2, ...; ops take `parents=None` for it, and need no mask. Flat rows number the nodes of the
whole batch, `b * width + i`, as SGLang does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from agentinfer.errors import AgentInferError


class KernelInputError(AgentInferError, ValueError):
    """An op was called with tensors it does not take."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verify step gained; the three tensors of SGLang's `eagle_sample` (`srt/speculative/eagle_utils.py`).

    `accept_index` int32 [bs, width]: flat rows of the accepted path from the root on, then -1.
    `accept_lens` int32 [bs]: new tokens of the request, accepted drafts plus the one the target adds; at least 1.
    `predict` int32 [bs * width]: at each row of the path the target's next token, the last of them the added one; 0
    elsewhere. So `predict[accept_index[b, :accept_lens[b]]]` are the new tokens in order.
    """

    predict: torch.Tensor
    accept_lens: torch.Tensor
    accept_index: torch.Tensor


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """What the engine needs to run the target over a batch of trees behind their contexts.

    `positions` int64 [bs * width]: context length + depth; padding gets the context length.
    `retrieve_index`, `retrieve_next_token`, `retrieve_next_sibling` int64 [bs, width]: flat row, lowest-numbered child
    and next child of the same parent, -1 for none, in the sense of SGLang's `EagleVerifyInput`.
    `is_chain`: every request is a chain, so causal attention is right and no mask was built.
    `mask` bool [bs, width, width] or None: True where the column is the row's ancestor or the row itself.
    `packed_mask` uint8 and `packed_indptr` int32 [bs + 1], or None: the mask over context and tree as FlashInfer's
    `packed_custom_mask` wants it, request b in bytes `packed_indptr[b]:packed_indptr[b + 1]`: bits of [width, context +
    width], row by row, lowest bit first. `packed_mask` may be longer than the last offset.
    """

    positions: torch.Tensor
    retrieve_index: torch.Tensor
    retrieve_next_token: torch.Tensor
    retrieve_next_sibling: torch.Tensor
    is_chain: bool
    mask: torch.Tensor | None = None
    packed_mask: torch.Tensor | None = None
    packed_indptr: torch.Tensor | None = None


def is_chain(parents: torch.Tensor) -> bool:
    """Whether every request's real nodes follow each other. On a GPU tensor this waits for the device."""
    width = parents.shape[1]
    expected = torch.arange(-1, width - 1, dtype=parents.dtype, device=parents.device)
    return bool(((parents == expected) | (parents < 0)).all())


def explicit_parents(
    candidates: torch.Tensor, parents: torch.Tensor | None, num_nodes: torch.Tensor | None
) -> torch.Tensor:
    """`parents` [bs, width] spelled out: a chain where None was given, -1 from `num_nodes` on."""
    width, device = candidates.shape[1], candidates.device
    if parents is None:
        parents = torch.arange(-1, width - 1, dtype=torch.int32, device=device).expand(candidates.shape)
    if num_nodes is None:
        return parents.contiguous()
    return torch.where(torch.arange(width, device=device) < num_nodes.view(-1, 1), parents, -1)


def check_tree(
    what: str, candidates: torch.Tensor, parents: torch.Tensor | None, num_nodes: torch.Tensor | None
) -> None:
    """Raises KernelInputError unless the shapes and integer types fit each other."""
    if candidates.dim() != 2 or candidates.shape[1] < 1 or candidates.is_floating_point():
        raise KernelInputError(
            f"{what}: expected integers [batch, width] with width >= 1, got {candidates.dtype} {list(candidates.shape)}"
        )
    if parents is not None and (parents.shape != candidates.shape or parents.is_floating_point()):
        raise KernelInputError(
            f"parents: expected integers {list(candidates.shape)} as {what}, got {parents.dtype} {list(parents.shape)}"
        )
    if num_nodes is not None and num_nodes.shape != candidates.shape[:1]:
        raise KernelInputError(f"num_nodes: expected [{candidates.shape[0]}], got {list(num_nodes.shape)}")
