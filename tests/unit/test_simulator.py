"""The simulated engine, mechanism by mechanism: every expected figure is worked out beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agentinfer.radix_ext.facade import KvState, Plan
from agentinfer.radix_ext.simulator import EngineCosts, SimulationError, StockPolicy, fits, repeated, run
from agentinfer.radix_ext.simulator.evictions import LeastRecentlyUsed
from tests.simulator_builders import PLAIN, agent, session, simulated, stock, turn


def test_turns_take_prefill_then_steps_then_the_gap() -> None:
    result, tally = simulated([session("a", turn(20, 3, gap_s=4.0), turn(10, 2))])
    # Turn 0: 0.5 + 20/10 = 2.5 brings the first token, two steps the others: 4.5. Gap: 8.5.
    # Turn 1: 0.5 + 10/10 = 1.5, one step: 11.0.
    assert tally.turns_s == [4.5, 2.5]
    assert tally.completions_s == [11.0]
    assert result.sessions_per_hour == pytest.approx(3600 / 11)
    # Prompts of 20 and 23 + 10 tokens; the second finds the 23.
    assert (tally.prompt_tokens, tally.hit_tokens, tally.recomputed_tokens) == (53, 23, 0)
    assert (result.hit_rate, result.output_tokens, result.decode_steps) == (23 / 53, 5, 3)
    assert result.busy_share == pytest.approx(7 / 11)  # all but the gap


def test_a_step_costs_by_sequence_and_by_token_attended_to() -> None:
    costs = replace(PLAIN, sequence_s=0.1, kv_token_s=0.01)
    _, tally = simulated([session("a", turn(10, 3))], costs=costs)
    # 0.5 + 1.0 of prefill; steps over 11 and 12 tokens: 1.1 + 0.11 and 1.1 + 0.12.
    assert tally.completions_s == [pytest.approx(1.5 + 1.21 + 1.22)]


def test_attention_of_a_chunk_counts_pairs() -> None:
    costs = replace(PLAIN, attention_s=0.001)
    _, tally = simulated([session("a", turn(150, 1))], costs=costs)
    # Chunks of 100 and 50: 10 + 0.001 * 100 * 50, and 5 + 0.001 * 50 * (100 + 25).
    assert tally.completions_s == [pytest.approx(0.5 + 10 + 5.0 + 5 + 6.25)]


@pytest.mark.parametrize(("is_mixed", "ends"), [(True, [29.0, 29.0]), (False, [31.0, 29.0])], ids=["mixed", "plain"])
def test_long_prompts_are_prefilled_in_chunks(is_mixed: bool, ends: list[float]) -> None:
    sessions = [session("a", turn(10, 5)), session("b", turn(250, 3))]
    _, tally = simulated(sessions, costs=replace(PLAIN, is_mixed=is_mixed))
    # Chunk 1: 10 of a, 90 of b: 2 * 0.5 + 10 = 11. Chunk 2: 100 of b: 21. Chunk 3: 60 of b: 27.
    # Mixed, a has 3 tokens then and needs 2 steps: 29. Plain, it has 1 and needs 4: 31. b needs 2: 29.
    assert sorted(tally.turns_s) == sorted(ends)
    assert tally.num_chunks == 3


def test_an_arrival_ends_a_run_of_steps_at_the_next_step() -> None:
    sessions = [session("a", turn(10, 100)), session("b", turn(10, 1, gap_s=5.2), turn(10, 1))]
    _, tally = simulated(sessions)
    # Chunk: 2 * 0.5 + 2 = 3.0. b is back at 8.2, within the step that ends at 9.0; its chunk takes 1.5: 10.5.
    assert tally.turns_s[:2] == [3.0, pytest.approx(2.3)]
    # a: 1 token at 3.0, 6 more until 9.0, one with the chunk, 92 steps after 10.5.
    assert tally.turns_s[2] == pytest.approx(102.5)


def test_more_than_max_running_wait_for_a_place() -> None:
    sessions = [session(name, turn(10, 2)) for name in "abc"]
    _, tally = simulated(sessions, costs=replace(PLAIN, max_running=2))
    # a, b: 1.0 + 2.0, one step: 4.0. c: 1.5, one step: 6.5.
    assert tally.turns_s == [4.0, 4.0, 6.5]
    assert tally.waits_s == [0.0, 0.0, 4.0]


def squeezed() -> list:
    """a leaves 30 tokens in a cache of 50 and is away for 50 s; then b, away for 20 s, needs 31 beside its own 6."""
    return [session("a", turn(20, 10, gap_s=50.0), turn(5, 1)), session("b", turn(5, 1, gap_s=20.0), turn(30, 1))]


def test_what_was_evicted_is_recomputed() -> None:
    result, tally = simulated(squeezed(), kv_tokens=50)
    # Chunk: 1.0 + 2.5 = 3.5; b is back at 23.5. a needs 9 steps: 12.5, back at 62.5.
    # b: a's 30 tokens go for its 30 + 1; 0.5 + 3.0. a: all 35 anew: 0.5 + 3.5 = 4.0.
    assert tally.turns_s == [3.5, 12.5, 3.5, 4.0]
    assert (tally.hit_tokens, tally.recomputed_tokens, tally.prompt_tokens) == (6, 30, 20 + 5 + 36 + 35)
    assert result.recomputed_share == 30 / 96
    assert tally.evicted_tokens == 30 + 31  # a's, and for a then the last turn that b has left


def test_what_was_offloaded_comes_back_by_loading() -> None:
    result, tally = simulated(squeezed(), kv_tokens=50, host=100)
    # a: 0.5, 30 tokens at 100 a second, 5 new ones at 10 a second: 1.3 instead of 4.0.
    assert tally.turns_s == [3.5, 12.5, 3.5, pytest.approx(1.3)]
    assert (tally.loaded_tokens, tally.recomputed_tokens) == (30, 0)
    assert (result.host_hit_rate, result.hit_rate) == (30 / 96, 36 / 96)


def test_a_host_tier_too_small_for_it_changes_nothing() -> None:
    _, tally = simulated(squeezed(), kv_tokens=50, host=29)
    assert (tally.loaded_tokens, tally.recomputed_tokens) == (0, 30)


def test_a_full_cache_takes_a_turn_back() -> None:
    sessions = [session("a", turn(10, 20)), session("b", turn(10, 20))]
    result, tally = simulated(sessions, kv_tokens=44)
    # Chunk: 3.0, 22 tokens; 11 steps fill the other 22: 14.0. b is taken back with 12 tokens said, its prompt stays.
    # a says its last 8: 22.0. b: 10 cached, 12 to recompute: 0.5 + 1.2 brings its 13th, 7 steps: 30.7.
    assert tally.turns_s == [22.0, pytest.approx(30.7)]
    assert (result.retractions, tally.recomputed_tokens, tally.output_tokens) == (1, 12, 40)


def test_admission_keeps_a_reserve_for_replies() -> None:
    sessions = [session("a", turn(10, 20)), session("b", turn(10, 20))]
    costs = replace(PLAIN, reserved_output_tokens=20, running_reserve=0.5)
    result, tally = simulated(sessions, kv_tokens=50, costs=costs)
    # Beside a's 11, b's 11 + 20 for itself + 10 for a exceed 50: it waits until a ends at 1.5 + 19.
    assert result.retractions == 0
    assert tally.waits_s == [0.0, 20.5]


def test_shared_starts_are_computed_once() -> None:
    sessions = [session(name, turn(5, 1), shared=(("system", 20),)) for name in "abc"]
    _, tally = simulated(sessions, live=2)
    # a and b begin in one chunk: 1.0 + 5.0, both compute the 20. c finds them: 0.5 + 0.5.
    assert tally.turns_s == [6.0, 6.0, 1.0]
    assert tally.hit_tokens == 20


def test_sessions_with_another_first_segment_share_nothing() -> None:
    sessions = [session(name, turn(5, 1), shared=((f"system {name}", 20), ("task", 10))) for name in "ab"]
    _, tally = simulated(sessions, live=1)
    assert tally.hit_tokens == 0


def test_an_edited_context_keeps_what_comes_before_the_edit() -> None:
    _, tally = simulated([session("a", turn(20, 10), turn(5, 1, kept=15), turn(5, 1))])
    # The second prompt is 15 + 5 tokens of which 15 are cached; the third 21 + 5 of which 21 are.
    assert (tally.hit_tokens, tally.prompt_tokens) == (15 + 21, 20 + 20 + 26)


def test_a_parent_waits_for_its_children() -> None:
    child = session("child", turn(10, 3))
    _, tally = simulated([session("a", turn(10, 1, gap_s=2.0, children=(child,)), turn(10, 1))])
    # a: 1.5. The child: 1.5 + 1.5 + 2 steps = 5.0, after the gap's end at 3.5. a: 5.0 + 1.5.
    assert tally.completions_s == [6.5]
    assert len(tally.turns_s) == 3


def test_a_session_keeps_to_its_replica() -> None:
    sessions = [session(name, turn(10, 2, gap_s=1.0), turn(10, 2)) for name in "abcd"]
    made: list[StockPolicy] = []

    def policy() -> StockPolicy:
        made.append(Noting())
        return made[-1]

    _, tally = simulated(sessions, live=4, policy=policy, replicas=2)
    # By the fewest live sessions, the first of equals.
    assert [each.seen for each in made] == [["a", "c", "a", "c"], ["b", "d", "b", "d"]]
    assert tally.hit_tokens == 4 * 12
    # On each: 1.0 + 2.0 and a step; away for 1.0; the same again.
    assert tally.completions_s == [9.0] * 4


class Noting(StockPolicy):
    def __init__(self) -> None:
        super().__init__("fcfs", LeastRecentlyUsed)
        self.seen: list[str] = []

    def turn_arrived(self, turn) -> None:
        self.seen.append(turn.session)
        super().turn_arrived(turn)


class Holding(StockPolicy):
    """Lets nobody go before `until_s`."""

    def __init__(self, until_s: float) -> None:
        super().__init__("fcfs", LeastRecentlyUsed)
        self._until_s = until_s

    def plan(self, now_s: float, kv: KvState) -> Plan:
        return super().plan(now_s, kv) if now_s >= self._until_s else Plan(())

    def wake_s(self, now_s: float) -> float | None:
        return self._until_s if now_s < self._until_s < math.inf else None


def test_a_policy_is_asked_again_when_it_said() -> None:
    _, tally = simulated([session("a", turn(10, 1))], policy=lambda: Holding(7.25))
    assert tally.waits_s == [7.25]


def test_a_policy_that_holds_forever_is_reported() -> None:
    with pytest.raises(SimulationError, match="let none of 1 waiting turns go"):
        simulated([session("a", turn(10, 1))], policy=lambda: Holding(math.inf))


def test_a_session_that_cannot_fit_is_refused() -> None:
    long = session("a", turn(10, 10))
    assert (fits(long, 21), fits(long, 20)) == (True, False)
    with pytest.raises(SimulationError, match="a context of 20 tokens does not fit into 20"):
        simulated([long], kv_tokens=20)
    simulated([long], kv_tokens=21)  # and one that just fits ends


def test_a_child_counts_for_whether_its_parent_fits() -> None:
    parent = session("a", turn(5, 1, children=(session("child", turn(40, 10)),)))
    assert parent.longest_context_tokens == 50


class Mute(LeastRecentlyUsed):
    def victims(self, now_s: float) -> Iterator[int]:
        return iter(())


def test_without_victims_turns_wait_for_room() -> None:
    sessions = [session("a", turn(20, 10)), session("b", turn(20, 10))]
    with pytest.raises(SimulationError, match="let none"):
        # a's 30 tokens stay when it has ended, and b never fits beside them.
        simulated(sessions, live=1, kv_tokens=40, policy=lambda: StockPolicy("fcfs", Mute))


def test_repeats_are_sessions_of_their_own() -> None:
    child = session("c", turn(1, 1))
    once = (session("a", turn(5, 1, children=(child,)), shared=(("system", 3),)), session("b", turn(5, 1)))
    many = list(repeated(once, 5))
    assert [each.id for each in many] == ["a", "b", "a~1", "b~1", "a~2"]
    assert many[2].turns[0].children[0].id == "c~1"
    assert many[2].shared == once[0].shared


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ((), "at least one turn"),
        ((turn(0, 1),), "new and output tokens from 1"),
        ((turn(1, 0),), "new and output tokens from 1"),
        ((turn(1, 1, gap_s=-1.0),), "gap from 0"),
        ((turn(1, 1), turn(1, 1, kept=3)), "0 to 2 kept tokens, got 3"),
        ((turn(1, 1, kept=1),), "expected 0 kept tokens, got 1"),
    ],
)
def test_turns_that_do_not_fit_together_are_refused(turns, complaint: str) -> None:
    with pytest.raises(SimulationError, match=complaint):
        session("a", *turns)


def test_the_same_run_twice_is_the_same() -> None:
    def result():
        sessions = [session(str(n), turn(30, 5, gap_s=n / 7), turn(20, 9)) for n in range(20)]
        return simulated(sessions, live=9, kv_tokens=200, policy=agent(200))[0]

    assert result() == result()


def test_a_waiting_big_turn_starves_under_shortest_first_but_not_under_the_agent_policy() -> None:
    """Twenty sessions whose small turns never leave the engine idle, and one whose next prompt is large."""
    small = [session(f"s{n}", *[turn(10, 5, gap_s=1.0)] * 60) for n in range(20)]
    big = session("big", turn(300, 5, gap_s=30.0), turn(300, 5))
    costs = replace(PLAIN, max_running=4)
    starving, _ = simulated(
        [*small, big], live=21, kv_tokens=25_000, policy=stock("shortest-prefill-first"), costs=costs
    )
    bounded, _ = simulated([*small, big], live=21, kv_tokens=25_000, policy=agent(25_000, max_wait_s=60.0), costs=costs)
    assert starving.worst_wait_s > 1000
    assert bounded.worst_wait_s < 300


def test_costs_refuse_what_makes_no_sense() -> None:
    for field, value in {"step_s": -1.0, "chunk_tokens": 0, "max_running": 1.5, "request_s": math.nan}.items():
        with pytest.raises(SimulationError, match=f"costs: {field}: expected"):
            EngineCosts(**{field: value})
    with pytest.raises(SimulationError, match="takes no time"):
        EngineCosts(step_s=0.0, sequence_s=0.0)


def test_an_empty_list_of_sessions_takes_no_time() -> None:
    tally, seconds, _ = run([], 4, 100, lambda _: stock()(), PLAIN)
    assert (tally.completions_s, seconds) == ([], 0.0)
