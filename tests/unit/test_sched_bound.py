"""The bound on waiting under overload: what was promised first is served first, members' turns included."""

from __future__ import annotations

from agentinfer.radix_ext import AgentPolicy
from agentinfer.radix_ext.fairness import Deadlines
from agentinfer.radix_ext.settings import SchedulingSettings
from agentinfer.radix_ext.simulator import EngineCosts, SimSession, SimTurn, run, summarise

COSTS = EngineCosts(prefill_tokens_per_s=1000.0)


def agents(count: int, turns: int = 12, first: int = 400, new: int = 60, reply: int = 20) -> tuple[SimSession, ...]:
    """Sessions that grow alike and never pause."""
    made = []
    for number in range(count):
        context, its_turns = 0, []
        for turn in range(turns):
            its_turns.append(SimTurn(context, new if turn else first, reply, 0.1, "shell"))
            context += (new if turn else first) + reply
        made.append(SimSession(f"s{number}", tuple(its_turns)))
    return tuple(made)


def worst_wait_s(max_wait_s: float, kv_tokens: int = 4000) -> float:
    settings = SchedulingSettings(max_wait_s=max_wait_s, prefill_tokens_per_s=COSTS.prefill_tokens_per_s)
    tally, simulated_s, _ = run(agents(24), 16, kv_tokens, lambda _: AgentPolicy(settings, kv_tokens), COSTS, 1, 0)
    return summarise(tally, simulated_s, 1).worst_wait_s


def test_a_bound_that_can_be_kept_is_kept() -> None:
    assert worst_wait_s(60.0) < 60.0 + 15.0


def test_a_bound_too_short_for_the_load_degrades_to_the_order_of_arrival() -> None:
    """At once due, everybody waits for those before them only: 16 sessions' whole contexts at 1,000 tokens a second."""
    assert worst_wait_s(0.5) < 16 * 1.4 + 15.0


def test_deadlines_settle_in_any_order() -> None:
    deadlines = Deadlines(SchedulingSettings(max_wait_s=10.0), 1000)
    for number, rid in enumerate("abc"):
        deadlines.promise(rid, float(number))
    deadlines.settle("a")
    assert deadlines.next_s() == 11.0
    assert deadlines.pop_due(10.9) is None
    assert deadlines.pop_due(11.0) == "b"
    assert set(deadlines) == {"c"}


def test_only_held_turns_make_the_automatic_bound_longer() -> None:
    settings = SchedulingSettings(prefill_tokens_per_s=100.0, visit_share=0.1, bound_refills=0.0)
    deadlines = Deadlines(settings, 1000)
    deadlines.promise("a", 0.0)
    assert deadlines.bound_s() == 0.0
    deadlines.hold("a", 500)
    assert deadlines.bound_s() == 50.0  # five seconds of recomputing, a tenth of the time
    deadlines.let_in("a")
    assert deadlines.bound_s() == 0.0
    deadlines.settle("a")
    assert len(deadlines) == 0
