"""Tree layout on a GPU: positions, links and the mask of the whole batch in one launch.

Programs (b, 0..n-1) share request b. Each writes every n-th block of the packed mask, which is nearly all context and
so nearly all ones; the first also writes what has the size of the tree. No mask of context size is ever unpacked.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from agentinfer.kernels.tree import TreeLayout

PROGRAMS = 8
BLOCK_BYTES = 256


def tree_layout_triton(
    parents: torch.Tensor, context_lens: torch.Tensor, mask: str, chain: bool, context_lens_sum: int | None
) -> TreeLayout:
    """Contract as `tree_layout`; waits for the device only for a packed mask without `context_lens_sum`."""
    batch_size, width = parents.shape
    device = parents.device
    positions = torch.empty(batch_size * width, dtype=torch.int64, device=device)
    links = torch.empty(3, batch_size, width, dtype=torch.int64, device=device)
    tree_mask = torch.empty(batch_size, width, width, dtype=torch.bool, device=device) if mask == "tree" else None
    packed, indptr = None, None
    if mask == "packed":
        if context_lens_sum is None:
            context_lens_sum = int(context_lens.sum())
        num_bits = width * (context_lens_sum + batch_size * width)
        # Each request ends on a whole byte, so up to one byte a request more than the bits need.
        packed = torch.empty(num_bits // 8 + batch_size, dtype=torch.uint8, device=device)
        indptr = torch.empty(batch_size + 1, dtype=torch.int32, device=device)
    if batch_size:
        _tree_layout_kernel[(batch_size, PROGRAMS if mask == "packed" else 1)](
            parents.contiguous(),
            context_lens.contiguous(),
            positions,
            links[0],
            links[1],
            links[2],
            positions if tree_mask is None else tree_mask,
            positions if packed is None else packed,
            positions if indptr is None else indptr,
            batch_size,
            width,
            WANT_TREE=mask == "tree",
            WANT_PACKED=mask == "packed",
            BLOCK=triton.next_power_of_2(width),
            BLOCK_BATCH=triton.next_power_of_2(batch_size),
            BLOCK_BYTES=BLOCK_BYTES,
            num_warps=4,
        )
    elif indptr is not None:
        indptr.zero_()
    return TreeLayout(positions, links[0], links[1], links[2], chain, tree_mask, packed, indptr)


@triton.jit
def _tree_layout_kernel(
    parents: tl.tensor,
    context_lens: tl.tensor,
    positions: tl.tensor,
    retrieve_index: tl.tensor,
    next_token: tl.tensor,
    next_sibling: tl.tensor,
    tree_mask: tl.tensor,
    packed_mask: tl.tensor,
    packed_indptr: tl.tensor,
    batch_size: tl.tensor,
    width: tl.tensor,
    WANT_TREE: tl.constexpr,
    WANT_PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
) -> None:
    request = tl.program_id(0)
    part = tl.program_id(1)
    tree = parents + request * width
    context_len = tl.load(context_lens + request).to(tl.int32)
    if part == 0:
        nodes = tl.arange(0, BLOCK)
        inside = nodes < width
        row = nodes[:, None]
        column = nodes[None, :]
        ancestors = _is_ancestor(tree, tl.where(inside[:, None], row + 0 * column, -1), column)
        depth = tl.sum(ancestors.to(tl.int32), axis=1) - 1
        parent_of_row = tl.load(tree + row, mask=row < width, other=-1).to(tl.int32)
        parent_of_column = tl.load(tree + column, mask=column < width, other=-1).to(tl.int32)
        first_child = tl.min(tl.where(parent_of_row == column, row, BLOCK), axis=0)
        follows = (parent_of_row == parent_of_column) & (parent_of_column >= 0) & (row > column)
        sibling = tl.min(tl.where(follows, row, BLOCK), axis=0)
        flat = request * width + nodes
        tl.store(positions + flat, (context_len + depth).to(tl.int64), mask=inside)
        tl.store(retrieve_index + flat, flat.to(tl.int64), mask=inside)
        tl.store(next_token + flat, tl.where(first_child < BLOCK, first_child, -1).to(tl.int64), mask=inside)
        tl.store(next_sibling + flat, tl.where(sibling < BLOCK, sibling, -1).to(tl.int64), mask=inside)
        if WANT_TREE:
            cell = tree_mask + (request * width + row) * width + column
            tl.store(cell, ancestors, mask=(row < width) & (column < width))
    if WANT_PACKED:
        requests = tl.arange(0, BLOCK_BATCH)
        lens = tl.load(context_lens + requests, mask=requests < batch_size, other=0).to(tl.int32)
        sizes = tl.where(requests < batch_size, (width * (lens + width) + 7) // 8, 0)
        start = tl.sum(tl.where(requests < request, sizes, 0), axis=0)
        kv_len = context_len + width
        num_bits = width * kv_len
        num_bytes = (num_bits + 7) // 8
        if part == 0:
            tl.store(packed_indptr + request + 1, start + num_bytes)
            if request == 0:
                tl.store(packed_indptr, 0)
        step = tl.num_programs(1) * BLOCK_BYTES
        for first in range(part * BLOCK_BYTES, num_bytes, step):
            byte = first + tl.arange(0, BLOCK_BYTES)
            bit = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
            row_of_bit = bit // kv_len
            column_of_bit = bit - row_of_bit * kv_len - context_len
            in_tree = (bit < num_bits) & (column_of_bit >= 0)
            seen = _is_ancestor(tree, tl.where(in_tree, row_of_bit, -1), column_of_bit)
            seen = seen | ((bit < num_bits) & (column_of_bit < 0))
            value = tl.sum(seen.to(tl.int32) << tl.arange(0, 8)[None, :], axis=1)
            tl.store(packed_mask + start + byte, value.to(tl.uint8), mask=byte < num_bytes)


@triton.jit
def _is_ancestor(tree: tl.tensor, node: tl.tensor, ancestor: tl.tensor) -> tl.tensor:
    """Whether `ancestor` is `node` or above it, for `node` >= 0; False for -1. Climbs as far as the deepest needs."""
    found = node == ancestor
    found = found & (node >= 0)
    # An ancestor has a lower number: below it there is nothing to find.
    node = tl.where(node > ancestor, node, -1)
    while tl.max(tl.max(node, axis=1), axis=0) >= 0:
        node = tl.load(tree + node, mask=node >= 0, other=-1).to(tl.int32)
        found = found | ((node == ancestor) & (node >= 0))
        node = tl.where(node > ancestor, node, -1)
    return found
