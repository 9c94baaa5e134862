"""A step's nodes, rows and times: which drafted nodes are verified, where they stand, what the controller is told."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentinfer.runtime.speculation.choice import pooled_nodes, uniform_nodes
from agentinfer.runtime.speculation.planning import StepPlanner
from agentinfer.runtime.speculation.statistics import StepTimer
from agentinfer.spec_sam import DraftBatch

CONTEXTS = np.array([100, 200, 300], dtype=np.int64)


def probabilities(*rows: list[float]) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, rows)) + 1
    table = np.zeros((len(rows), width), dtype=np.float32)
    table[:, 0] = 1.0
    for b, row in enumerate(rows):
        table[b, 1 : len(row) + 1] = row
    return table, np.array([len(row) + 1 for row in rows])


def test_uniform_steps_take_the_same_number_of_nodes_of_each_draft() -> None:
    table, num_nodes = probabilities([0.9, 0.8, 0.7], [0.2], [])
    nodes, width = uniform_nodes(table, num_nodes, CONTEXTS, lambda *_: 3)
    assert (nodes.tolist(), width) == ([3, 2, 1], 3)


def test_ragged_steps_spend_the_width_on_the_best_nodes_of_all_drafts() -> None:
    table, num_nodes = probabilities([0.9, 0.8, 0.7], [0.2, 0.1], [])
    nodes, width = pooled_nodes(table, num_nodes, CONTEXTS, lambda *_: 2)
    assert (nodes.tolist(), width) == ([4, 1, 1], 2)
    assert pooled_nodes(table, num_nodes, CONTEXTS, lambda *_: 1)[0].tolist() == [1, 1, 1]
    assert pooled_nodes(table, num_nodes, CONTEXTS, lambda *_: 4)[0].tolist() == [4, 3, 1]


def test_controller_sees_what_each_width_of_a_ragged_step_gains() -> None:
    table, num_nodes = probabilities([0.9, 0.8, 0.7], [0.2, 0.1], [])
    seen = []
    pooled_nodes(table, num_nodes, CONTEXTS, lambda dealt, lens: seen.append((dealt.copy(), lens)) or 1)
    dealt, lens = seen[0]
    assert lens is CONTEXTS
    assert dealt[:, 1:].sum(axis=0).tolist() == pytest.approx([0.9 + 0.8 + 0.7, 0.2 + 0.1, 0.0])
    assert all(left >= right for row in dealt.tolist() for left, right in pairwise(row))


drafts = st.lists(
    st.lists(st.sampled_from([0.9, 0.5, 0.5, 0.25, 0.1]), max_size=6).map(lambda row: sorted(row, reverse=True)),
    min_size=1,
    max_size=5,
)


@given(drafts, st.integers(1, 7))
def test_a_ragged_step_takes_no_node_without_its_better_ones_and_no_more_than_the_budget(
    rows: list[list[float]], width: int
) -> None:
    table, num_nodes = probabilities(*rows)
    width = min(width, table.shape[1])
    nodes, _ = pooled_nodes(table, num_nodes, np.zeros(len(rows), dtype=np.int64), lambda *_: width)
    assert (nodes >= 1).all()
    assert (nodes <= num_nodes).all()
    assert (nodes - 1).sum() == min((width - 1) * len(rows), (num_nodes - 1).sum())
    # Nodes are cut from the end of each draft, so what is left out is never better than what is taken.
    taken = [probability for b, row in enumerate(rows) for probability in row[: nodes[b] - 1]]
    left = [probability for b, row in enumerate(rows) for probability in row[nodes[b] - 1 :]]
    assert min(taken, default=1.0) >= max(left, default=0.0)


class Book:
    """Drafts a chain of likely tokens for each request, as long as it is asked for."""

    def draft(self, requests, ahead, max_width):
        n = len(requests)
        probability = np.tile(np.float32(0.9) ** np.arange(max_width, dtype=np.float32), (n, 1))
        parents = np.tile(np.arange(-1, max_width - 1, dtype=np.int32), (n, 1))
        return DraftBatch(
            np.ones((n, max_width), np.int32), parents, probability, np.full(n, max_width, dtype=np.int32)
        )


class Controller:
    """Chooses the width it was made with, and remembers what it was shown."""

    def __init__(self, width: int, drafts: bool = True) -> None:
        self.width, self.drafts = width, drafts
        self.shown: np.ndarray | None = None
        self.timed = 0

    def should_draft(self, batch_size: int) -> bool:
        return self.drafts

    def observe_draft(self, batch_size: int, seconds: float) -> None:
        self.timed += 1

    def choose(self, path_probability: np.ndarray, context_lens: np.ndarray) -> int:
        self.shown = path_probability.copy()
        return self.width


def request(num_prompt: int, num_output: int, max_new_tokens: int, **params: float) -> SimpleNamespace:
    known = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "min_new_tokens": 0}
    return SimpleNamespace(
        origin_input_ids=[1] * num_prompt,
        output_ids=[2] * num_output,
        custom_logit_processor=None,
        sampling_params=SimpleNamespace(**{**known, **params}, max_new_tokens=max_new_tokens),
    )


def plan(controller: Controller, requests: list[SimpleNamespace], **options):
    made = StepPlanner(Book(), controller, 8, **{"is_ragged": True, "captured_width": lambda: None, **options})
    context_lens = np.array([len(r.origin_input_ids) + len(r.output_ids) - 1 for r in requests])
    return made.plan(requests, None, context_lens)


def test_a_request_near_its_end_is_drafted_no_further_than_that() -> None:
    controller = Controller(8)
    planned = plan(controller, [request(10, 1, 100), request(10, 7, 10), request(10, 9, 10), request(10, 10, 10)])
    assert planned.num_nodes.tolist() == [8, 3, 1, 1]
    assert (controller.shown[:, 1:] > 0).sum() == 7 + 2


def test_a_penalised_request_is_decoded_plainly_beside_drafted_ones() -> None:
    planned = plan(Controller(8), [request(10, 1, 100), request(10, 1, 100, frequency_penalty=0.5)])
    assert planned.num_nodes.tolist() == [8, 1]
    assert planned.path_probability[1].tolist() == [1.0] + [0.0] * 7


def test_where_drafting_does_not_pay_nothing_is_drafted() -> None:
    controller = Controller(8, drafts=False)
    planned = plan(controller, [request(10, 1, 100)] * 2)
    assert (planned.width, planned.num_nodes.tolist(), planned.tokens.shape) == (1, [1, 1], (2, 1))
    assert (controller.shown, controller.timed) == (None, 0)


def test_captured_graphs_fix_the_width_of_every_step() -> None:
    padded = plan(Controller(4), [request(10, 1, 100)], is_ragged=False, captured_width=lambda: 8)
    assert (padded.width, padded.padded_width, padded.num_nodes.tolist()) == (8, 8, [8])
    free = plan(Controller(4), [request(10, 1, 100)], is_ragged=False)
    assert (free.width, free.padded_width, free.num_nodes.tolist()) == (4, 4, [4])


class Times:
    """A clock that is set by hand, and what the controller was told."""

    def __init__(self) -> None:
        self.now_s = 10.0
        self.seen: list[tuple[int, int, int, float, int]] = []
        self.timer = StepTimer(lambda *figures: self.seen.append(figures), lambda: self.now_s)


def test_step_is_timed_until_the_next_one_starts() -> None:
    times, request = Times(), object()
    times.timer.start_step([request])
    times.now_s = 10.5
    times.timer.end_step(1, 4, 100, 0.125, 3)
    assert times.seen == []
    times.now_s = 10.75
    times.timer.start_step([request])
    assert times.seen == [(1, 4, 100, 0.625, 3)]


@pytest.mark.parametrize("what", ["prefill", "other requests"])
def test_step_is_timed_until_its_end_where_something_else_follows(what: str) -> None:
    times, request = Times(), object()
    times.timer.start_step([request])
    times.now_s = 10.5
    times.timer.end_step(1, 1, 100, 0.0, 1)
    times.now_s = 99.0
    if what == "prefill":
        times.timer.interrupt()
        times.timer.interrupt()
    else:
        times.timer.start_step([object()])
    assert times.seen == [(1, 1, 100, 0.5, 1)]


@pytest.mark.sglang
class TestLayout:
    """Two requests: a tree of five nodes behind 7 tokens, a lone root behind 9."""

    TOKENS = np.array([[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]], dtype=np.int32)
    PARENTS = np.array([[-1, 0, 0, 1, 2], [-1, -1, -1, -1, -1]], dtype=np.int32)
    NODES = np.array([5, 1])
    CONTEXT = np.array([7, 9], dtype=np.int64)

    def layout(self, width: int | None = None, nodes: np.ndarray = NODES):
        from agentinfer.runtime.speculation.layout import step_layout

        return step_layout(self.TOKENS, self.PARENTS, nodes, self.CONTEXT, width)

    def test_ragged_rows_are_the_real_nodes(self) -> None:
        layout = self.layout()
        assert layout.row_counts == (5, 1)
        assert layout.of_rows(layout.tokens).tolist() == [5, 6, 7, 8, 9, 4]
        assert layout.of_rows(layout.tree.positions).tolist() == [7, 8, 8, 9, 9, 9]
        assert layout.to_rows(torch.tensor([[0, 2, 4, -1], [5, -1, -1, -1]])).tolist() == [
            [0, 2, 4, -1],
            [5, -1, -1, -1],
        ]

    def test_cut_draft_is_the_tree_of_its_first_nodes(self) -> None:
        layout = self.layout(nodes=np.array([3, 1]))
        assert layout.width == 3
        assert layout.row_counts == (3, 1)
        assert layout.tree.mask[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]

    def test_padded_rows_have_one_width_and_padding_is_no_child(self) -> None:
        layout = self.layout(width=8)
        assert layout.row_counts == (8, 8)
        assert layout.num_nodes.tolist() == [5, 1]
        assert (layout.parents[0, 5:] == -1).all()
        assert layout.tree.retrieve_next_token[1].tolist() == [-1] * 8

    def test_input_tells_attention_each_requests_tree(self) -> None:
        from agentinfer.runtime.speculation.layout import AgentVerifyInput

        given = AgentVerifyInput(self.layout(), torch.device("cpu"), None)
        assert given.row_counts == (5, 1)
        assert [tree.shape[0] for tree in given.trees] == [5, 1]
        assert given.is_verify_input()

    def test_chains_need_no_tree(self) -> None:
        from agentinfer.runtime.speculation.layout import AgentVerifyInput, step_layout

        chain = np.array([[-1, 0, 1, 2, 3], [-1, -1, -1, -1, -1]], dtype=np.int32)
        layout = step_layout(self.TOKENS, chain, np.array([4, 1]), self.CONTEXT, None)
        assert layout.tree.is_chain
        assert AgentVerifyInput(layout, torch.device("cpu"), None).trees == [None, None]

    def test_full_mask_sees_the_context_and_the_ancestors(self) -> None:
        from agentinfer.runtime.speculation.layout import full_mask

        layout = self.layout(width=5)
        flat = full_mask(layout, self.CONTEXT, torch.device("cpu"))
        first, second = flat.split([5 * 12, 5 * 14])
        assert first.view(5, 12)[:, :7].all()
        assert torch.equal(first.view(5, 12)[:, 7:], layout.tree.mask[0])
        assert second.view(5, 14)[:, :9].all()
        assert torch.equal(second.view(5, 14)[:, 9:], layout.tree.mask[1])
