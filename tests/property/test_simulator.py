"""The simulated engine under random workloads and every policy: nothing is lost, over-committed, idle or random."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentinfer.radix_ext.simulator import EVICTIONS, ORDERS, SimSession
from agentinfer.radix_ext.simulator.engine import Engine
from agentinfer.radix_ext.simulator.replicas import ClosedLoop
from tests.simulator_builders import PLAIN, agent, session, simulated, stock

POLICIES = {
    "agent": agent,
    "agent, bound 20 s": lambda kv: agent(kv, max_wait_s=20.0),
    **{
        f"{order}+{eviction}": lambda kv, o=order, e=eviction: stock(o, e) for order in ORDERS for eviction in EVICTIONS
    },
}
GAPS_S = st.sampled_from([0.0, 0.5, 3.0, 40.0])


@st.composite
def chains(draw, name: str, depth: int) -> SimSession:
    shared = draw(st.sampled_from([(), (("s", 7),), (("s", 7), ("t", 5)), (("s", 7), ("u", 9))]))
    available = sum(tokens for _, tokens in shared)
    turns = []
    for number in range(draw(st.integers(1, 4))):
        kept = available
        if number and draw(st.integers(0, 4)) == 0:
            kept = draw(st.integers(0, available))
        new, out = draw(st.integers(1, 60)), draw(st.integers(1, 12))
        children = ()
        if depth and draw(st.integers(0, 5)) == 0:
            children = tuple(draw(chains(f"{name}.{number}.{i}", depth - 1)) for i in range(draw(st.integers(1, 2))))
        turns.append((new, out, draw(GAPS_S), kept, children))
        available = kept + new + out
    return session(name, *turns, shared=shared)


@st.composite
def cases(draw):
    sessions = [draw(chains(f"s{n}", 1)) for n in range(draw(st.integers(1, 7)))]
    longest = max(each.longest_context_tokens for each in sessions)
    return {
        "sessions": sessions,
        "live": draw(st.integers(1, 8)),
        "kv_tokens": longest + 1 + draw(st.integers(0, 200)),
        "replicas": draw(st.integers(1, 2)),
        "host": draw(st.sampled_from([0, 60, 400])),
        "costs": replace(
            PLAIN,
            chunk_tokens=draw(st.sampled_from([16, 100])),
            max_running=draw(st.sampled_from([1, 2, 8])),
            is_mixed=draw(st.booleans()),
            reserved_output_tokens=draw(st.sampled_from([0, 20])),
            running_reserve=draw(st.sampled_from([0.0, 0.5])),
        ),
    }


def check(engines: list[Engine], loop: ClosedLoop) -> None:
    for engine in engines:
        engine.check_integrity()
        # Nothing is locked in an idle engine, so everything fits.
        assert not engine.is_stalled, "idle though turns wait and fit"


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=25)
@given(case=cases())
def test_nothing_is_lost_over_committed_idle_or_random(name: str, case) -> None:
    def result(checked=None):
        return simulated(**case, policy=POLICIES[name](case["kv_tokens"]), check=checked)

    found, tally = result(check)
    assert found.sessions == len(case["sessions"])
    assert found.turns == sum(each.num_turns for each in case["sessions"])
    assert found.output_tokens == sum(map(spoken, case["sessions"]))
    # Every prompt token was found, loaded or computed, and none that nobody knew was recomputed.
    assert tally.hit_tokens + tally.loaded_tokens <= tally.prompt_tokens
    assert tally.recomputed_tokens <= found.computed_tokens
    assert found.busy_share <= 1.0 + 1e-9
    assert result()[0] == found


def spoken(each: SimSession) -> int:
    return sum(turn.output_tokens + sum(map(spoken, turn.children)) for turn in each.turns)


@settings(max_examples=40)
@given(case=cases(), bound_s=st.sampled_from([5.0, 20.0, 100.0]))
def test_no_turn_waits_past_the_bound_and_those_promised_before_it(case, bound_s: float) -> None:
    """Past its deadline a turn waits for the turns that run and for earlier deadlines: at most one of each session."""
    kv_tokens = case["kv_tokens"]
    found, tally = simulated(**case, policy=agent(kv_tokens, max_wait_s=bound_s))
    live = sum(1 + sum(len(turn.children) for turn in each.turns) for each in case["sessions"])
    assert found.worst_wait_s <= bound_s + live * max(tally.serves_s)


@settings(max_examples=60)
@given(
    first_s=st.floats(1e-4, 1.0),
    growth_s=st.sampled_from([0.0, 1e-9, 1e-5]),
    sequences=st.integers(1, 300),
    kv_tokens=st.integers(0, 10**6),
    seconds=st.floats(0.0, 500.0),
)
def test_steps_until_is_the_inverse_of_steps_s(first_s, growth_s, sequences, kv_tokens, seconds) -> None:
    costs = replace(PLAIN, step_s=first_s, kv_token_s=growth_s)
    steps = costs.steps_until(seconds, sequences, kv_tokens)
    assert costs.steps_s(steps, sequences, kv_tokens) >= seconds
    assert steps == 1 or costs.steps_s(steps - 1, sequences, kv_tokens) < seconds
