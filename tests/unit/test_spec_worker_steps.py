"""A step's nodes, rows and times: which drafted nodes are verified, where they stand, what the controller is told."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentinfer.runtime.speculation.choice import pooled_nodes, uniform_nodes
from agentinfer.runtime.speculation.statistics import StepTimer

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
