"""What a step verifies: one drafting call for the batch, then of each draft what pays and what its request can use."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentinfer.runtime.speculation.choice import pooled_nodes, uniform_nodes
from agentinfer.runtime.speculation.parts import Controller
from agentinfer.runtime.speculation.requests import RequestBook
from agentinfer.spec_sam import DraftBatch


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step verifies: drafts, cut to `num_nodes` of each request, and the width that the controller chose.

    `path_probability` is 0 where a request cannot use a node. `padded_width`: what each request's rows are padded to;
    None for ragged rows. `draft_s`: seconds that drafting took.
    """

    tokens: np.ndarray
    parents: np.ndarray
    path_probability: np.ndarray
    num_nodes: np.ndarray
    width: int
    padded_width: int | None
    draft_s: float


class StepPlanner:
    """Plans one step after the other.

    `is_ragged`: whether requests may bring different numbers of rows. `captured_width()`: the width that CUDA graphs
    were captured for, since any other would run without them, or None where there are none.
    """

    def __init__(
        self,
        book: RequestBook,
        controller: Controller,
        max_width: int,
        is_ragged: bool,
        captured_width: Callable[[], int | None],
    ) -> None:
        self._book = book
        self._controller = controller
        self._max_width = max_width
        self._is_ragged = is_ragged
        self._captured_width = captured_width

    def plan(
        self, requests: Sequence[Any], ahead: Sequence[Sequence[int]] | None, context_lens: np.ndarray
    ) -> StepPlan:
        """The drafts, and what of them is verified. `ahead`: see `RequestBook.draft`; `context_lens` int64 [n]."""
        num_requests = len(requests)
        is_drafted = self._controller.should_draft(num_requests)
        started_s = time.perf_counter()
        drafts = self._book.draft(requests, ahead, self._max_width if is_drafted else 1)
        draft_s = time.perf_counter() - started_s
        num_nodes, probability = np.ones(num_requests, dtype=np.int64), drafts.path_probability
        width, padded = 1, None
        if is_drafted:
            self._controller.observe_draft(num_requests, draft_s)
            num_nodes, probability = _usable(requests, drafts, context_lens)
            if self._is_ragged:
                num_nodes, width = pooled_nodes(probability, num_nodes, context_lens, self._controller.choose)
            elif self._captured_width() is None:
                num_nodes, width = uniform_nodes(probability, num_nodes, context_lens, self._controller.choose)
        if not self._is_ragged:
            width = padded = self._captured_width() or width
        return StepPlan(drafts.tokens, drafts.parents, probability, num_nodes, width, padded, draft_s)


def needs_plain_decoding(request: Any) -> bool:
    """Whether a request's next token depends on its last ones in a way that rows of one step cannot know."""
    params = request.sampling_params
    return bool(
        params.frequency_penalty
        or params.presence_penalty
        or params.repetition_penalty != 1.0
        or len(request.output_ids) < params.min_new_tokens
        or request.custom_logit_processor is not None
    )


def _usable(requests: Sequence[Any], drafts: DraftBatch, context_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(nodes of each draft that its request can use, their probabilities with 0 for the others)."""
    # A request with r tokens to go has no use for more than r - 1 of a draft, nor has the model positions for them.
    limits = [len(request.origin_input_ids) + request.sampling_params.max_new_tokens for request in requests]
    num_nodes = np.minimum(drafts.num_nodes, np.maximum(1, np.array(limits) - (context_lens + 1)))
    num_nodes[[needs_plain_decoding(request) for request in requests]] = 1
    is_node = np.arange(drafts.path_probability.shape[1]) < num_nodes[:, None]
    probability = np.where(is_node, drafts.path_probability, np.float32(0.0))
    probability[:, 0] = 1.0
    return num_nodes, probability
