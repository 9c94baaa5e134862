"""Tree layout, the obvious way: climb from each node to the root."""

from __future__ import annotations

import torch


def tree_layout_reference(parents: torch.Tensor, context_lens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(positions, next_token, next_sibling, mask) of `TreeLayout`, positions [bs, width]."""
    batch_size, width = parents.shape
    mask = torch.eye(width, dtype=torch.bool).repeat(batch_size, 1, 1)
    next_token, next_sibling = torch.full((2, batch_size, width), -1, dtype=torch.int64)
    for b in range(batch_size):
        for node in range(width):
            ancestor = parents[b, node]
            while ancestor >= 0:
                mask[b, node, ancestor] = True
                ancestor = parents[b, ancestor]
            children = torch.nonzero(parents[b] == node)[:, 0]
            next_token[b, node : node + len(children[:1])] = children[:1]
            next_sibling[b, children[:-1]] = children[1:]
    positions = context_lens.view(-1, 1).long() + mask.sum(-1) - 1
    return positions, next_token, next_sibling, mask


def packed_mask_reference(mask: torch.Tensor, context_lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(packed_mask, packed_indptr) of `TreeLayout`, packed request by request."""
    segments = []
    for tree, context_len in zip(mask, context_lens.tolist(), strict=True):
        whole = torch.cat([torch.ones(len(tree), context_len, dtype=torch.bool), tree], dim=1).flatten()
        bits = torch.nn.functional.pad(whole, (0, -len(whole) % 8)).view(-1, 8)
        segments.append((bits * torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])).sum(1).to(torch.uint8))
    ends = torch.tensor([len(segment) for segment in segments]).cumsum(0)
    return torch.cat(segments), torch.nn.functional.pad(ends, (1, 0)).int()
