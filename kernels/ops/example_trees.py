"""Random draft trees of named shapes, inputs of the specs."""

from __future__ import annotations

from typing import Literal

import torch

Shape = Literal["chain", "ragged_chain", "tree", "star"]


def random_parents(shape: Shape, batch_size: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Parents int32 [bs, width].

    `chain`: all `width` long; `ragged_chain`: 1 to `width`; `tree`: ragged, each node below one of the three before it;
    `star`: all below the root.
    """
    parents = torch.full((batch_size, width), -1, dtype=torch.int32)
    for b in range(batch_size):
        full = shape in ("chain", "star")
        num_nodes = width if full else int(torch.randint(1, width + 1, (1,), generator=generator))
        for node in range(1, num_nodes):
            if shape == "star":
                parents[b, node] = 0
            elif shape == "tree":
                parents[b, node] = int(torch.randint(max(0, node - 3), node, (1,), generator=generator))
            else:
                parents[b, node] = node - 1
    return parents


def distinct_siblings(parents: torch.Tensor, vocab_size: int, generator: torch.Generator) -> torch.Tensor:
    """Tokens int64 [bs, width] in which no two children of a node are alike, as drafters give them."""
    batch_size, width = parents.shape
    tokens = torch.randint(vocab_size, (batch_size, width), generator=generator)
    for b in range(batch_size):
        for node in range(1, width):
            if parents[b, node] < 0:
                continue
            siblings = {int(tokens[b, other]) for other in range(1, node) if parents[b, other] == parents[b, node]}
            assert len(siblings) < vocab_size, f"{len(siblings) + 1} siblings from {vocab_size} tokens"
            while int(tokens[b, node]) in siblings:
                tokens[b, node] = (tokens[b, node] + 1) % vocab_size
    return tokens
