"""AgentSched's decisions in small worlds: a cache of 1,000 tokens, sessions of a few hundred."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest

from agentinfer.radix_ext import ROOT, AgentPolicy, KvState, SchedulingSettings, TurnRequest

SETTINGS = SchedulingSettings(prefill_tokens_per_s=100.0, growth_turns=0.0, max_wait_s=50.0)


class World:
    """A policy and the cache it is told of. The clock stands still unless a test moves it."""

    def __init__(self, capacity_tokens: int = 1000, settings: SchedulingSettings = SETTINGS) -> None:
        self.policy = AgentPolicy(settings, capacity_tokens)
        self.capacity_tokens = capacity_tokens
        self.now_s = 0.0
        self.running: set[str] = set()
        self._nodes = count(1)
        self._rids = count()

    def arrive(self, session: str | None, prompt_tokens: int, **fields: object) -> str:
        rid = f"{session}/{next(self._rids)}"
        turn = TurnRequest(rid, session, self.now_s, prompt_tokens)
        self.policy.turn_arrived(replace(turn, **fields))  # type: ignore[arg-type]
        return rid

    def plan(self) -> tuple[str, ...]:
        used = sum(self.policy.paths.num_tokens(n) for n in list(self.policy.paths._nodes) if n != ROOT)
        found = self.policy.plan(self.now_s, KvState(self.capacity_tokens - used, used, len(self.running)))
        self.policy.check_integrity()
        return found.order

    def start(self, rid: str) -> None:
        self.policy.turn_started(rid, self.now_s)
        self.running.add(rid)

    def finish(self, rid: str, context_tokens: int, tool: str | None = "shell", is_last: bool = False) -> None:
        """The turn ends and its context is cached to the end, as the engine does it: before the policy hears of it."""
        session = rid.rpartition("/")[0]
        paths = self.policy.paths
        node = next(self._nodes)
        new = context_tokens - paths.cached_tokens(session)
        if new > 0:
            paths.add(node, paths.frontier(session), new)
            paths.place(session, node)
        self.policy.turn_finished(rid, self.now_s, context_tokens, tool, is_last)
        self.running.discard(rid)

    def run(self, session: str, context_tokens: int, prompt_tokens: int | None = None) -> None:
        """A whole turn of the session."""
        rid = self.arrive(session, prompt_tokens or context_tokens - 10)
        assert rid in self.plan()
        self.start(rid)
        self.finish(rid, context_tokens)

    def evict(self, num_tokens: int) -> list[str]:
        """Frees at least so many tokens; the sessions that lost some, in the order in which they did."""
        lost: list[str] = []
        for node in self.policy.victims(self.now_s):
            lost += sorted(self.policy.paths.sessions_at(node)) or ["nobody"]
            num_tokens -= self.policy.paths.num_tokens(node)
            self.policy.paths.remove(node)
            if num_tokens <= 0:
                break
        self.policy.check_integrity()
        return lost


def test_while_all_fits_every_turn_may_go() -> None:
    world = World()
    rids = {world.arrive(name, 200) for name in "abcd"}
    assert set(world.plan()) == rids


def test_sessions_join_by_seniority_until_the_share_is_filled() -> None:
    world = World()
    for name in "abc":
        world.run(name, 300)  # 900 of the 1,000: the share that members may fill
    held = world.arrive("d", 250)
    again = [world.arrive(name, 310) for name in "abc"]
    assert set(world.plan()) == set(again)
    assert held not in world.plan()


def test_the_eldest_held_session_is_not_passed_by_a_smaller_younger_one() -> None:
    world = World()
    for name in "abc":
        world.run(name, 250)
    big, small = world.arrive("big", 400), world.arrive("small", 100)
    world.start(world.arrive("a", 260))
    assert big not in world.plan()
    assert world.policy.admission.working_set.head().id == "big"  # type: ignore[union-attr]
    # The small one's first turn fits in the room left for growth, so it may pass once, but it does not join.
    assert small in world.plan()
    assert "small" in world.policy.admission.working_set.visitors


def test_members_that_outgrow_the_cache_pause_the_youngest_first() -> None:
    world = World()
    for name in "abc":
        world.run(name, 290)
    first = [world.arrive(name, 380) for name in "abc"]  # 1,140 in all
    assert set(world.plan()) == set(first[:2])
    assert world.policy.snapshot(0.0)["paused"] == 1


def test_a_held_turn_goes_once_its_bound_has_passed_and_before_all_others() -> None:
    world = World(settings=replace(SETTINGS, park_ratio=1e6))  # nobody gives a place up
    for name in "abc":
        world.run(name, 299)
    held = world.arrive("late", 250)
    busy = world.arrive("a", 305)
    world.now_s = 49.0
    assert world.plan() == (busy,)
    assert world.policy.wake_s(49.0) == 50.0
    world.now_s = 50.0
    assert world.plan()[0] == held


def test_deadlines_are_kept_in_the_order_they_were_promised() -> None:
    world = World()
    for name in "abc":
        world.run(name, 299)
    late = []
    for number in range(5):
        world.now_s = float(number)
        late.append(world.arrive(f"late{number}", 200))
    world.start(world.arrive("a", 301))
    world.now_s = 60.0
    assert world.plan()[:3] == tuple(late[:3])


def test_an_idle_engine_takes_the_eldest_turn_whatever_it_displaces() -> None:
    world = World()
    for name in "abc":
        world.run(name, 299)
    held = world.arrive("d", 800)
    assert world.plan() == (held,)


def test_a_visitor_is_held_again_after_its_turn() -> None:
    world = World()
    for name in "abc":
        world.run(name, 299)
    visit = world.arrive("late", 250)
    world.now_s = 50.0
    world.start(world.arrive("a", 301))
    assert visit in world.plan()
    world.start(visit)
    world.finish(visit, 260)
    following = world.arrive("late", 270)
    assert following not in world.plan()


def test_an_urgent_turn_of_a_big_context_takes_the_smallest_members_place() -> None:
    world = World()
    for name in "abc":
        world.run(name, 290)
    late = world.arrive("late", 400)
    world.now_s = 50.0
    again = {name: world.arrive(name, 295) for name in "abc"}
    order = world.plan()
    assert order[0] == late
    assert "late" in world.policy.admission.working_set.members
    world.start(late)
    assert again["c"] not in world.plan()


def test_a_child_stands_right_behind_its_parent() -> None:
    world = World()
    world.run("parent", 299)
    world.run("b", 299)
    world.run("c", 299)
    world.start(world.arrive("b", 301))
    world.arrive("other", 200)
    world.arrive("child", 200, parent="parent")
    world.plan()
    assert world.policy.admission.working_set.head().id == "child"  # type: ignore[union-attr]


def test_members_that_stay_away_long_give_their_places_up_when_needed() -> None:
    world = World()
    for name in "ab":
        world.run(name, 440)
    world.policy.tool_called("a", ("person",), 0.0)
    for _ in range(200):
        world.policy.latency.observe(("person",), 4000.0)
        world.policy.latency.observe(("shell",), 0.1)
    world.now_s = 1.0
    world.start(world.arrive("b", 445))
    wanted = world.arrive("d", 300)
    # Recomputing 440 tokens takes 4.4 s; a person who is away for an hour is not waited for.
    assert wanted in world.plan()
    assert world.policy.snapshot(1.0)["parked"] == 1


def test_a_client_that_says_how_long_its_tool_runs_is_believed() -> None:
    world = World()
    rids = {
        name: world.arrive(name, 200, expected_tool_s=seconds) for name, seconds in (("soon", 1.0), ("late", 600.0))
    }
    world.plan()
    for rid in rids.values():
        world.start(rid)
    for rid in rids.values():
        world.finish(rid, 210)
    assert world.evict(10_000) == ["late", "soon"]


def test_eviction_takes_nobodys_leaves_then_held_sessions_youngest_first_then_members_by_return() -> None:
    world = World()
    for name in "abcd":
        world.run(name, 220)
    world.policy.session_ended("b")
    world.run("e", 60)
    world.run("f", 60)
    working_set = world.policy.admission.working_set
    for name in "ef":
        working_set.hold(working_set.members[name])
    for _ in range(200):
        world.policy.latency.observe(("slow",), 500.0)
        world.policy.latency.observe(("fast",), 0.5)
    world.policy.tool_called("a", ("fast",), 0.0)
    world.policy.tool_called("c", ("slow",), 0.0)
    world.policy.tool_called("d", ("fast",), 0.0)
    waiting = world.arrive("d", 225)
    assert waiting
    assert world.evict(10_000) == ["nobody", "f", "e", "c", "a", "d"]


def test_a_shared_leaf_is_worth_what_its_most_valuable_session_is() -> None:
    world = World()
    paths = world.policy.paths
    for name in ("young", "old"):
        rid = world.arrive(name, 100)
        world.plan()
        world.start(rid)
    paths.add(900, ROOT, 100)
    for name, rid in (("old", "old/1"), ("young", "young/0")):
        paths.place(name, 900)
        world.policy.turn_finished(rid, 0.0, 100, "shell", False)
    world.run("other", 300)
    working_set = world.policy.admission.working_set
    working_set.hold(working_set.members["young"])
    working_set.hold(working_set.members["other"])
    lost = world.evict(10_000)
    assert lost == ["other", "old", "young"]


def test_what_is_not_evicted_is_offered_again() -> None:
    world = World()
    world.run("a", 100)
    world.run("b", 100)
    world.policy.session_ended("a")
    for _ in range(3):
        assert len(list(world.policy.victims(0.0))) == 2


def test_the_last_turn_and_the_end_of_a_session_leave_nothing_behind() -> None:
    world = World()
    rid = world.arrive("a", 100)
    world.plan()
    world.start(rid)
    world.finish(rid, 120, is_last=True)
    world.run("b", 100)
    world.policy.session_ended("b")
    world.policy.session_ended("never seen")
    lone = world.arrive(None, 50)
    world.plan()
    world.start(lone)
    world.policy.turn_finished(lone, 0.0, 60, None, False)
    assert world.policy.snapshot(0.0)["sessions"] == 0
    assert len(list(world.policy.paths.nobodys_leaves())) == 2


def test_a_dropped_first_turn_leaves_no_session() -> None:
    world = World()
    waits, runs = world.arrive("a", 100), world.arrive("b", 100)
    world.plan()
    world.start(runs)
    world.policy.turn_dropped(waits, 0.0)
    world.policy.turn_dropped(runs, 0.0)
    assert world.policy.snapshot(0.0)["sessions"] == 0
    assert world.plan() == ()


def test_a_session_that_ends_while_it_runs_is_forgotten_after_the_turn() -> None:
    world = World()
    rid = world.arrive("a", 100)
    world.plan()
    world.start(rid)
    world.policy.session_ended("a")
    assert world.policy.snapshot(0.0)["sessions"] == 1
    world.finish(rid, 120)
    assert world.policy.snapshot(0.0)["sessions"] == 0


def test_retraction_takes_visitors_first_and_then_the_youngest() -> None:
    world = World()
    rids = {name: world.arrive(name, 200) for name in "abc"}
    world.plan()
    for rid in rids.values():
        world.start(rid)
    late = world.arrive("late", 350)
    world.now_s = 50.0
    world.plan()
    world.start(late)
    kept = world.policy.retraction_order([late, rids["c"], rids["a"], rids["b"]], 50.0)
    assert [rid.rpartition("/")[0] for rid in kept] == ["a", "b", "c", "late"]
    world.policy.turn_requeued(late, 51.0)
    world.running.discard(late)
    assert late in world.plan()


def test_the_automatic_bound_grows_with_what_visits_would_cost() -> None:
    settings = replace(SETTINGS, max_wait_s=None, visit_share=0.1, bound_refills=2.0)
    world = World(settings=settings)
    assert world.policy.snapshot(0.0)["bound_s"] == 20.0  # twice 1,000 tokens at 100 a second
    for name in "abcdef":
        world.run(name, 290)
        world.evict(290)
    world.start(world.arrive("a", 300))
    for name in "bcdef":
        world.arrive(name, 295)
    world.plan()
    held = [name for name in "bcdef" if name not in world.policy.admission.working_set.members]
    assert world.policy.snapshot(0.0)["bound_s"] == pytest.approx(max(20.0, len(held) * 290 / 100 / 0.1))
    assert len(held) == 3


def test_a_promise_is_not_moved_by_later_arrivals() -> None:
    settings = replace(SETTINGS, max_wait_s=None, visit_share=0.1, bound_refills=2.0)
    world = World(settings=settings)
    for name in "abc":
        world.run(name, 295)
    held = world.arrive("d", 290)
    world.start(world.arrive("a", 300))
    assert held not in world.plan()
    assert world.policy.wake_s(0.0) == 20.0
    for number in range(50):
        world.arrive(f"x{number}", 290)
    assert world.policy.wake_s(0.0) == 20.0


def test_sessions_that_share_a_prefix_are_admitted_for_what_is_their_own() -> None:
    world = World()
    paths = world.policy.paths
    paths.add(900, ROOT, 600)
    for name in "abc":
        paths.place(name, 900)
        world.run(name, 690)  # 600 shared, 90 of its own: 870 in all
    assert world.policy.snapshot(0.0)["committed_tokens"] == 870
    assert world.policy.snapshot(0.0)["members"] == 3
