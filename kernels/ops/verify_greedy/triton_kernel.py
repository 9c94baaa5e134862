"""Greedy verification on a GPU: one program a request, the whole draft in registers, one launch, no fill before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from agentinfer.kernels.tree import Verified


def verify_greedy_triton(
    candidates: torch.Tensor,
    target: torch.Tensor,
    parents: torch.Tensor | None,
    num_nodes: torch.Tensor | None,
) -> Verified:
    """Contract as `verify_greedy`; never waits for the device."""
    batch_size, width = candidates.shape
    verified = empty_verified(candidates)
    if batch_size:
        _verify_greedy_kernel[(batch_size,)](
            candidates.contiguous(),
            target.contiguous(),
            candidates if parents is None else parents.contiguous(),
            candidates if num_nodes is None else num_nodes.contiguous(),
            verified.predict,
            verified.accept_lens,
            verified.accept_index,
            width,
            IS_CHAIN=parents is None,
            IS_FULL=num_nodes is None,
            BLOCK=triton.next_power_of_2(width),
            num_warps=1,
        )
    return verified


def empty_verified(candidates: torch.Tensor) -> Verified:
    """Uninitialised results for drafts of the shape and device of `candidates`."""
    batch_size, width = candidates.shape
    return Verified(
        torch.empty(batch_size * width, dtype=torch.int32, device=candidates.device),
        torch.empty(batch_size, dtype=torch.int32, device=candidates.device),
        torch.empty(batch_size, width, dtype=torch.int32, device=candidates.device),
    )


@triton.jit
def _verify_greedy_kernel(
    candidates: tl.tensor,
    target: tl.tensor,
    parents: tl.tensor,
    num_nodes: tl.tensor,
    predict: tl.tensor,
    accept_lens: tl.tensor,
    accept_index: tl.tensor,
    width: tl.tensor,
    IS_CHAIN: tl.constexpr,
    IS_FULL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    request = tl.program_id(0)
    nodes = tl.arange(0, BLOCK)
    inside = nodes < width
    rows = request * width + nodes
    tokens = tl.load(candidates + rows, mask=inside, other=0)
    parent_of = nodes - 1
    if not IS_CHAIN:
        parent_of = tl.load(parents + rows, mask=inside, other=-1).to(tl.int32)
    real = inside & (nodes > 0)
    if not IS_FULL:
        real = real & (nodes < tl.load(num_nodes + request))

    path = tl.full([BLOCK], -1, tl.int32)
    predicted = tl.zeros([BLOCK], tl.int32)
    node = 0
    length = 0
    while node < BLOCK:
        choice = tl.load(target + request * width + node)
        path = tl.where(nodes == length, request * width + node, path)
        predicted = tl.where(nodes == node, choice.to(tl.int32), predicted)
        length += 1
        fits = real & (parent_of == node) & (tokens == choice)
        node = tl.min(tl.where(fits, nodes, BLOCK), axis=0)

    tl.store(predict + rows, predicted, mask=inside)
    tl.store(accept_index + rows, path, mask=inside)
    tl.store(accept_lens + request, length)
