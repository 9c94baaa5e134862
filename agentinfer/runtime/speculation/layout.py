"""A verify step's rows: which node of which request each row of the forward pass is, and where it stands.

On the CPU rows are ragged, since each costs time: a request brings as many as its draft has nodes. Elsewhere every
request brings the step's width, padded, as captured CUDA graphs want it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sglang.srt.speculative.ngram_info import NgramVerifyInput

from agentinfer.kernels import TreeLayout, tree_layout


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Drafts of a batch as rows. Tensors are on the host.

    `tokens` int64 [n, width], `parents` int32 [n, width], -1 for root and padding, `num_nodes` int32 [n] (root
    included). Row r of the forward pass is node `node[r]` of request `request[r]`; request b's rows begin at
    `first_row[b]`. `tree` says where nodes stand and what they see.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    num_nodes: torch.Tensor
    request: torch.Tensor
    node: torch.Tensor
    first_row: torch.Tensor
    tree: TreeLayout

    @property
    def width(self) -> int:
        return self.tokens.shape[1]

    @property
    def row_counts(self) -> tuple[int, ...]:
        """Rows a request, in the batch's order."""
        ends = [*self.first_row.tolist()[1:], self.request.numel()]
        return tuple(end - start for start, end in zip(self.first_row.tolist(), ends, strict=True))

    def of_rows(self, values: torch.Tensor) -> torch.Tensor:
        """The rows' entries of `values` [n * width] or [n, width], padding left out."""
        return values.view(-1)[self.request * self.width + self.node]

    def to_rows(self, flat_nodes: torch.Tensor) -> torch.Tensor:
        """Rows of nodes given as `request * width + node`, as the kernels number them; -1 stays -1."""
        first_row = self.first_row.to(flat_nodes.device, flat_nodes.dtype)
        requests = torch.div(flat_nodes.clamp(min=0), self.width, rounding_mode="floor").long()
        return torch.where(flat_nodes < 0, flat_nodes, first_row[requests] + flat_nodes % self.width)


def step_layout(
    tokens: np.ndarray, parents: np.ndarray, num_nodes: np.ndarray, context_lens: np.ndarray, width: int | None
) -> StepLayout:
    """The rows of drafts cut to `num_nodes` int [n] nodes.

    `tokens` and `parents` int32 [n, at least the largest of num_nodes]. `width`: what every request is padded to, or
    None for ragged rows. Padding hangs below the root and is never accepted.
    """
    columns = width or int(num_nodes.max())
    counts = np.full(len(num_nodes), columns) if width else num_nodes.astype(np.int64)
    is_real = np.arange(columns) < num_nodes[:, None]
    cut_tokens = _fitted(tokens, columns, is_real, 0)
    cut_parents = torch.from_numpy(_fitted(parents, columns, is_real, -1))
    tree = tree_layout(cut_parents, torch.from_numpy(context_lens.astype(np.int64)), mask="tree")
    first_row = np.concatenate(([0], np.cumsum(counts)[:-1]))
    request = np.repeat(np.arange(len(counts)), counts)
    return StepLayout(
        tokens=torch.from_numpy(cut_tokens.astype(np.int64)),
        parents=cut_parents,
        num_nodes=torch.from_numpy(num_nodes.astype(np.int32)),
        request=torch.from_numpy(request),
        node=torch.from_numpy(np.arange(len(request)) - first_row[request]),
        first_row=torch.from_numpy(first_row),
        tree=tree,
    )


class AgentVerifyInput(NgramVerifyInput):  # type: ignore[misc]
    """A step's input with its own rows: `row_counts` and, for trees, `trees` are what the CPU's attention reads."""

    def __init__(self, layout: StepLayout, device: torch.device, custom_mask: torch.Tensor | None) -> None:
        super().__init__(
            draft_token=layout.of_rows(layout.tokens).to(device),
            custom_mask=custom_mask,
            positions=layout.of_rows(layout.tree.positions).to(device),
            draft_token_num=layout.width,
            # Only where the base class looks for a device.
            new_seq_lens=layout.first_row.to(device),
        )
        self.row_counts = layout.row_counts
        self.trees = _trees(layout)


def full_mask(layout: StepLayout, context_lens: np.ndarray, device: torch.device) -> torch.Tensor:
    """The mask over context and tree that SGLang's attention backends take: bool, request after request, row by row."""
    width = layout.width
    mask = layout.tree.mask
    if mask is None:  # chains
        mask = torch.ones(width, width, dtype=torch.bool).tril().expand(len(context_lens), width, width)
    lens = torch.from_numpy(context_lens.astype(np.int64))
    sizes = width * (lens + width)
    starts = sizes.cumsum(0) - sizes
    line = (lens + width).view(-1, 1, 1)
    columns = torch.arange(width)
    at = starts.view(-1, 1, 1) + columns.view(1, -1, 1) * line + lens.view(-1, 1, 1) + columns.view(1, 1, -1)
    whole = torch.ones(int(sizes.sum()), dtype=torch.bool, device=device)
    whole[at.flatten().to(device)] = mask.reshape(-1).to(device)
    return whole


def _fitted(values: np.ndarray, columns: int, is_real: np.ndarray, padding: int) -> np.ndarray:
    """`values` with `columns` columns, `padding` where there is no node."""
    if values.shape[1] < columns:
        values = np.pad(values, ((0, 0), (0, columns - values.shape[1])))
    return np.where(is_real, values[:, :columns], padding).astype(np.int32)


def _trees(layout: StepLayout) -> list[torch.Tensor | None]:
    mask = layout.tree.mask
    counts = layout.row_counts
    if mask is None:
        return [None] * len(counts)
    return [mask[b, :count, :count] for b, count in enumerate(counts)]
