"""When the silent model prefills ahead, and the count of what switches found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentinfer.collab_lang.controller import Phase, State
from agentinfer.collab_lang.hand_over import MIN_TOKENS, EscalationRate, HandOvers, chance_of_switch, is_worth

shares = st.floats(0.0, 1.0)
counts = st.integers(0, 10_000)


@given(shares, shares, shares, counts)
def test_a_likelier_switch_is_never_worth_less(one: float, other: float, load: float, tokens: int) -> None:
    low, high = sorted((one, other))
    assert is_worth(low, load, tokens) <= is_worth(high, load, tokens)


@given(shares, st.floats(0.0, 5.0), st.floats(0.0, 5.0), counts)
def test_a_busier_engine_is_never_worth_more(chance: float, one: float, other: float, tokens: int) -> None:
    low, high = sorted((one, other))
    assert is_worth(chance, high, tokens) <= is_worth(chance, low, tokens)


@pytest.mark.parametrize(
    ("chance", "load", "tokens", "expected"),
    [
        (1.0, 0.0, MIN_TOKENS, True),
        (1.0, 0.0, MIN_TOKENS - 1, False),
        (1.0, 0.99, 5000, True),
        (1.0, 1.0, 5000, False),
        (0.05, 0.0, 5000, False),
        (0.5, 0.4, 5000, True),
        (0.5, 0.5, 5000, False),
    ],
)
def test_worth(chance: float, load: float, tokens: int, expected: bool) -> None:
    assert is_worth(chance, load, tokens) is expected


@given(shares, shares, counts)
def test_a_model_that_is_escalated_more_is_likelier_to_be_left(one: float, other: float, steps: int) -> None:
    state = State(Phase.SMALL, steps=steps)
    low, high = sorted((one, other))
    assert 0.0 <= chance_of_switch(state, low) <= chance_of_switch(state, high) <= 1.0


def test_the_small_model_always_follows_the_large_one() -> None:
    assert chance_of_switch(State(Phase.BURST), 0.0) == chance_of_switch(State(Phase.WARM_UP), 0.0) == 1.0
    assert chance_of_switch(State(Phase.BURST, is_over=True), 1.0) == 0.0
    # Ten more steps at one in ten each.
    assert chance_of_switch(State(Phase.SMALL, steps=3), 0.1) == pytest.approx(1 - 0.9**10)
    assert chance_of_switch(State(Phase.SMALL, steps=30), 0.1) == pytest.approx(1 - 0.9**30)


def test_the_rate_begins_at_a_half_and_follows_what_is_seen() -> None:
    rate = EscalationRate()
    assert rate.per_step == 0.5
    for _ in range(98):
        rate.observe(False)
    assert rate.per_step == pytest.approx(0.01)
    rate.observe(True)
    assert rate.per_step == pytest.approx(2 / 101)


@pytest.mark.parametrize(
    ("prompt", "cached", "seen", "computed", "share"),
    [
        (1000, 200, 200, 800, 0.0),
        (1000, 960, 200, 40, 0.95),
        (1000, 1000, 200, 0, 1.0),
        (1000, 0, 200, 800, 0.0),
    ],
    ids=["cold", "warm but the last 40", "all warm", "even what was seen is gone"],
)
def test_a_switch_is_counted_over_what_the_model_had_not_seen(
    prompt: int, cached: int, seen: int, computed: int, share: float
) -> None:
    found = HandOvers()
    found.add(prompt, cached, seen)
    assert (found.switches, found.unseen_tokens, found.computed_tokens) == (1, 800, computed)
    assert found.prefilled_share == pytest.approx(share)


@pytest.mark.parametrize(
    ("cached", "computed", "share"),
    [(1000, 0, 1.0), (800, 200, 0.75), (0, 800, 0.0)],
    ids=["only the result was new", "some of the history too", "nothing was there"],
)
def test_what_came_with_the_turn_is_no_matter_of_the_switch(cached: int, computed: int, share: float) -> None:
    found = HandOvers()
    found.add(1100, cached, 200, fresh_tokens=100)
    assert (found.unseen_tokens, found.computed_tokens) == (800, computed)
    assert found.prefilled_share == pytest.approx(share)


def test_no_switch_has_no_share() -> None:
    assert HandOvers().prefilled_share is None


@given(st.lists(st.tuples(counts, counts, counts, counts)))
def test_the_share_is_one_whatever_engines_report(switches: list[tuple[int, int, int, int]]) -> None:
    """A prompt that shrank, more cached than asked: an edited history, or a cache that counts its own way."""
    found = HandOvers()
    for switch in switches:
        found.add(*switch)
    assert found.switches == len(switches)
    assert 0 <= found.computed_tokens <= found.unseen_tokens
    assert found.prefilled_share is None or 0.0 <= found.prefilled_share <= 1.0
