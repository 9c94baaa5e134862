"""Forcing a recorded reply: which token belongs to which row of logits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from agentinfer.runtime.forced import conflicting_param, force_logits, plan_rows  # noqa: E402

VOCABULARY = 50


def reference(forced, prompt_lens, positions, rows_per_request):
    """Row by row: the token to force, or None."""
    expected = []
    for row, position in enumerate(positions):
        tokens = forced[row // rows_per_request]
        index = position + 1 - prompt_lens[row // rows_per_request]
        expected.append(tokens[index] if tokens is not None and 0 <= index < len(tokens) else None)
    return expected


requests = st.lists(
    st.tuples(
        st.none() | st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6),
        st.integers(1, 8),
        st.lists(st.integers(0, 16), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=5,
)


@given(requests, st.sampled_from([1, 3]))
@settings(max_examples=200, deadline=None)
def test_plan_matches_a_row_by_row_reference(batch, rows_per_request):
    forced = [tokens for tokens, _, _ in batch]
    prompt_lens = [prompt_len for _, prompt_len, _ in batch]
    positions = [p for _, _, node_positions in batch for p in node_positions[:rows_per_request]]
    plan = plan_rows(
        [None if tokens is None else torch.tensor(tokens) for tokens in forced],
        prompt_lens,
        torch.tensor(positions),
        rows_per_request,
    )
    expected = reference(forced, prompt_lens, positions, rows_per_request)
    if plan is None:
        assert all(tokens is None for tokens in forced)
        return
    assert plan.is_forced.tolist() == [token is not None for token in expected]

    logits = torch.randn(len(positions), VOCABULARY)
    before = logits.clone()
    force_logits(logits, plan)
    for row, token in enumerate(expected):
        if token is None:
            assert torch.equal(logits[row], before[row])
        else:
            assert logits[row].softmax(0)[token] == 1.0
            assert logits[row].argmax() == token


def test_requests_may_bring_different_numbers_of_rows():
    forced = [torch.tensor([7, 8, 9]), None, torch.tensor([5])]
    positions = torch.tensor([3, 4, 5, 20, 10, 11])
    plan = plan_rows(forced, [4, 8, 11], positions, (3, 1, 2))
    assert plan.is_forced.tolist() == [True, True, True, False, True, False]
    assert plan.token[plan.is_forced].tolist() == [7, 8, 9, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forced_row_is_certain_at_any_temperature(dtype):
    logits = torch.randn(1, VOCABULARY).to(dtype)
    plan = plan_rows([torch.tensor([7])], [4], torch.tensor([3]), 1)
    force_logits(logits, plan)
    for temperature in (0.1, 1.0, 10.0):
        assert (logits.float() / temperature).softmax(-1)[0, 7] == 1.0


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({}, None),
        ({"temperature": 0.5, "min_new_tokens": 0}, None),
        ({"regex": "a+"}, "regex"),
        ({"min_new_tokens": 3}, "min_new_tokens"),
    ],
    ids=["empty", "harmless", "grammar", "minimum length"],
)
def test_parameters_that_forbid_tokens_are_found(params, name):
    assert conflicting_param(params) == name
