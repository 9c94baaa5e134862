"""Tree layout on a CPU: ancestors as the bits of Python integers, tensors built once for the batch."""

from __future__ import annotations

import numpy as np
import torch


def tree_layout_cpu(
    parents: torch.Tensor, context_lens: torch.Tensor, want_mask: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(positions [bs, width], next_token, next_sibling, mask or None) of `TreeLayout`."""
    batch_size, width = parents.shape
    positions: list[int] = []
    next_token: list[int] = []
    next_sibling: list[int] = []
    ancestors = bytearray()
    num_bytes = (width + 7) // 8
    for parent_of, context_len in zip(parents.tolist(), context_lens.tolist(), strict=True):
        depths, child_of, sibling_of, last_child = [context_len] * width, [-1] * width, [-1] * width, [-1] * width
        lines = [1 << node for node in range(width)]
        for node in range(1, width):
            parent = parent_of[node]
            if parent < 0:
                continue
            depths[node] = depths[parent] + 1
            lines[node] |= lines[parent]
            if child_of[parent] < 0:
                child_of[parent] = node
            else:
                sibling_of[last_child[parent]] = node
            last_child[parent] = node
        positions += depths
        next_token += child_of
        next_sibling += sibling_of
        if want_mask:
            for line in lines:
                ancestors += line.to_bytes(num_bytes, "little")
    mask = None
    if want_mask:
        bits = np.frombuffer(ancestors, dtype=np.uint8).reshape(batch_size, width, num_bytes)
        mask = torch.from_numpy(np.unpackbits(bits, axis=-1, count=width, bitorder="little").view(bool))
    # One conversion from Python for all three.
    numbers = torch.tensor(positions + next_token + next_sibling).view(3, batch_size, width)
    return numbers[0], numbers[1], numbers[2], mask


def packed_mask_cpu(mask: torch.Tensor, context_lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(packed_mask, packed_indptr) of `TreeLayout`: all ones, then the zeros of all trees are cut out."""
    batch_size, width, _ = mask.shape
    lens = context_lens.numpy().astype(np.int64)
    num_bits = width * (lens + width)
    indptr = np.zeros(batch_size + 1, dtype=np.int64)
    np.cumsum((num_bits + 7) // 8, out=indptr[1:])
    packed = np.full(indptr[-1], 0xFF, dtype=np.uint8)
    # FlashInfer's packbits leaves the bits behind a segment's end at 0.
    tails = num_bits % 8
    packed[indptr[1:][tails > 0] - 1] = (1 << tails[tails > 0]) - 1
    request, row, column = np.nonzero(~mask.numpy())
    bit = row * (lens[request] + width) + lens[request] + column
    byte = indptr[request] + bit // 8
    np.bitwise_and.at(packed, byte, (~(1 << (bit % 8))).astype(np.uint8))
    return torch.from_numpy(packed), torch.from_numpy(indptr.astype(np.int32))
