"""Sampled verification for small batches on a CPU: level by level, over the rows the walks really visit.

A row of weights costs a softmax and often a sort over the vocabulary, so rows off the accepted paths are never made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from agentinfer.kernels.tree import Verified


def verify_sampled_cpu(
    candidates: torch.Tensor,
    weights_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    coins: torch.Tensor,
    parents: torch.Tensor | None,
    num_nodes: torch.Tensor | None,
) -> Verified:
    """Contract as `verify_sampled`; `weights_of(requests, nodes)`, both int64 [n], gives weights [n, vocab]."""
    batch_size, width = candidates.shape
    real = num_nodes.tolist() if num_nodes is not None else [width] * batch_size
    tokens = candidates.tolist()
    parent_rows = parents.tolist() if parents is not None else [range(-1, width - 1)] * batch_size
    predict = [0] * (batch_size * width)
    paths: list[list[int]] = [[0] for _ in range(batch_size)]
    walking = list(range(batch_size))
    depth = 0
    while walking:
        nodes = [paths[b][-1] for b in walking]
        requests = torch.tensor(walking)
        drawn = draw(weights_of(requests, torch.tensor(nodes)), coins[requests, depth]).tolist()
        still_walking = []
        for b, node, token in zip(walking, nodes, drawn, strict=True):
            predict[b * width + node] = token
            for child in range(node + 1, real[b]):
                if parent_rows[b][child] == node and tokens[b][child] == token:
                    paths[b].append(child)
                    still_walking.append(b)
                    break
        walking = still_walking
        depth += 1
    accept_index = [[b * width + node for node in path] + [-1] * (width - len(path)) for b, path in enumerate(paths)]
    return Verified(
        torch.tensor(predict, dtype=torch.int32),
        torch.tensor([len(path) for path in paths], dtype=torch.int32),
        torch.tensor(accept_index, dtype=torch.int32).view(batch_size, width),
    )


def draw(weights: torch.Tensor, coins: torch.Tensor) -> torch.Tensor:
    """Tokens int64 [n]: the first at which the running sum of its row passes `coin` (in [0, 1)) times the row's sum."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:].clone()
    drawn = torch.searchsorted(cumulative, coins.view(-1, 1) * total, right=True)
    # Rounding can put the threshold on the sum itself; the last token that weighs anything is meant.
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(drawn, last).view(-1)
