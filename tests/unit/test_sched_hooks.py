"""What AgentSched does to a scheduler's queue, on a stand-in for the scheduler: order, holding back, events, news."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentinfer.runtime.scheduling.book import TurnBook
from agentinfer.runtime.scheduling.hooks import SchedulerHooks
from agentinfer.runtime.scheduling.speed import PrefillSpeed
from tests.scheduling_builders import RecordingPolicy, Request

pytestmark = pytest.mark.sglang


class Scheduler:
    """As much of SGLang's scheduler as the hooks touch. `fits` requests go into a batch at each pass."""

    def __init__(self, fits: int = 1, **options: Any) -> None:
        self.policy = RecordingPolicy()
        self.hooks = SchedulerHooks()
        self.hooks.bind(TurnBook(self.policy))
        self.book = self.hooks.book
        self.fits = fits
        self.waiting_queue: list[Request] = []
        self.running_batch = SimpleNamespace(reqs=[], batch_is_full=False)
        self.last_batch = None
        self.chunked_req = None
        self.grammar_manager = SimpleNamespace(grammar_queue=[])
        self.enable_priority_preemption = self.is_hybrid_swa = False
        self.enable_priority_scheduling = options.get("by_priority", False)
        self.schedule_low_priority_values_first = options.get("low_first", False)
        self.token_to_kv_pool_allocator = SimpleNamespace(size_full=100, available_size=lambda: 40)
        self.mirror_problem: str | None = None
        self.num_checks = 0
        self.tree_cache = SimpleNamespace(
            supports_swa=lambda: False,
            full_evictable_size=lambda: 30,
            num_unordered_evictions=0,
            tree_core=SimpleNamespace(check_mirror=self._check_mirror),
        )
        self.tried: list[list[str]] = []
        self.during: Any = None
        self.refused: set[str] = set()
        self.lengths: list[int] = []

    def _check_mirror(self) -> None:
        self.num_checks += 1
        if self.mirror_problem is not None:
            raise AssertionError(self.mirror_problem)

    def add(self, request: Request) -> Request:
        self.hooks.add_to_queue(Scheduler._add, self, request)
        return request

    def step(self) -> None:
        try:
            self.hooks.fill_prefill_batch(Scheduler._fill, self, None, running_batch=self.running_batch)
        finally:
            self.last_batch = None

    def _add(self, request: Request, is_retracted: bool = False) -> None:
        self.lengths.append(len(self.waiting_queue))
        if request.rid not in self.refused:
            self.waiting_queue.append(request)

    def _fill(self, delayer: Any, running_batch: Any) -> tuple[Any, Any]:
        self.tried.append([request.rid for request in self.waiting_queue])
        if self.during is not None:
            self.during()
        taken = self.waiting_queue[: self.fits]
        self.running_batch.reqs += taken
        self.waiting_queue = [request for request in self.waiting_queue if request not in taken]
        return (SimpleNamespace(reqs=taken, extend_num_tokens=1) if taken else None), running_batch


def queue_of(scheduler: Scheduler) -> list[str]:
    return [request.rid for request in scheduler.waiting_queue]


def test_queue_is_tried_in_the_plans_order_and_stays_in_order_of_arrival() -> None:
    scheduler = Scheduler()
    for rid in "abcd":
        scheduler.add(Request(rid, [1, 2], "s" + rid))
    scheduler.step()
    assert scheduler.tried == [["d", "c", "b", "a"]]
    assert queue_of(scheduler) == ["a", "b", "c"]
    assert scheduler.policy.events[-1] == ("started", "d")


def test_held_requests_are_not_tried_and_not_lost() -> None:
    scheduler = Scheduler(fits=3)
    for rid in "abcd":
        scheduler.add(Request(rid, [1, 2], "s" + rid))
    scheduler.policy.held = {"b", "d"}
    scheduler.step()
    assert scheduler.tried == [["c", "a"]]
    assert queue_of(scheduler) == ["b", "d"]


def test_queue_is_whole_again_after_an_error() -> None:
    scheduler = Scheduler()
    for rid in "abc":
        scheduler.add(Request(rid, [1, 2]))
    scheduler.policy.held = {"b"}

    def fail() -> None:
        raise RuntimeError("out of memory")

    scheduler.during = fail
    with pytest.raises(RuntimeError):
        scheduler.step()
    assert queue_of(scheduler) == ["a", "b", "c"]


def test_request_that_comes_during_a_pass_is_seen_from_the_next_one_on() -> None:
    """As those whose grammar is ready do; and the limit on the queue's length counts the held ones."""
    scheduler = Scheduler(fits=5)
    for rid in "ab":
        scheduler.add(Request(rid, [1, 2]))
    scheduler.policy.held = {"b"}
    scheduler.during = lambda: scheduler.add(Request("late", [1]))
    scheduler.step()
    assert scheduler.lengths[-1] == 2
    assert queue_of(scheduler) == ["b", "late"]
    assert [request.rid for request in scheduler.running_batch.reqs] == ["a"]
    scheduler.during, scheduler.policy.held = None, set()
    scheduler.step()
    assert queue_of(scheduler) == []


def test_request_that_comes_into_an_empty_queue_and_starts_in_the_same_pass_has_started() -> None:
    """So does one that waited for its grammar: upstream queues it within the pass."""
    scheduler = Scheduler()
    scheduler.during = lambda: scheduler.add(Request("g", [1, 2], "sg"))
    scheduler.step()
    assert scheduler.running_batch.reqs[0].rid == "g"
    assert scheduler.policy.events[-1] == ("started", "g")
    assert scheduler.book.num_waiting == 0
    scheduler.book.check_integrity()


def test_refused_request_never_arrives() -> None:
    scheduler = Scheduler()
    scheduler.refused = {"a"}
    scheduler.add(Request("a", [1]))
    assert scheduler.policy.events == []


def test_failed_request_goes_first_and_is_never_held() -> None:
    scheduler = Scheduler()
    scheduler.policy.held = {"a"}
    for rid in "abc":
        request = Request(rid, [1, 2])
        request.to_finish = "no such grammar" if rid == "a" else None
        scheduler.add(request)
    scheduler.step()
    assert scheduler.tried == [["a", "c", "b"]]


def test_full_batch_is_not_planned_for() -> None:
    scheduler = Scheduler()
    scheduler.add(Request("a", [1, 2]))
    scheduler.running_batch.batch_is_full = True
    scheduler.policy.plan = None  # type: ignore[assignment, method-assign]
    scheduler.step()
    assert scheduler.tried == [["a"]]


def test_retracted_request_waits_again_as_the_same_turn() -> None:
    scheduler = Scheduler()
    request = scheduler.add(Request("a", [1, 2], "s"))
    scheduler.step()
    scheduler.running_batch.reqs.clear()
    scheduler.add(request)
    assert scheduler.policy.events == [("arrived", "a", "s"), ("started", "a"), ("requeued", "a")]


def test_requests_that_vanish_are_dropped_by_the_next_plan() -> None:
    scheduler = Scheduler()
    for rid in "abc":
        scheduler.add(Request(rid, [1, 2]))
    scheduler.waiting_queue.pop(1)
    scheduler.step()
    assert ("dropped", "b") in scheduler.policy.events
    assert ("ended", "request b") in scheduler.policy.events
    assert scheduler.book.num_swept == 1


def test_requests_that_came_another_way_are_planned_too() -> None:
    scheduler = Scheduler()
    scheduler.waiting_queue.append(Request("a", [1, 2]))
    scheduler.step()
    assert scheduler.policy.events == [("arrived", "a", "request a"), ("started", "a")]


def test_news_reach_the_policy_and_are_answered_with_its_figures() -> None:
    scheduler = Scheduler()
    report = scheduler.hooks.take_news(scheduler, news(7.5, [("s", ["search"], 7.0)], ["t"], 250.0))
    assert scheduler.policy.events == [("called", "s", ("search",), 7.0), ("ended", "t"), ("measured", 250.0)]
    assert scheduler.book.now_s == 7.5
    assert report.figures == {
        "waiting": 0,
        "measured_prefill_tokens_per_s": None,
        "open_turns": 0,
        "swept_turns": 0,
        "unordered_evictions": 0,
        "mirror_errors": 0,
    }
    scheduler.hooks.take_news(scheduler, news(6.0))
    assert scheduler.book.now_s == 7.5


def news(now_s: float, called: Any = (), ended: Any = (), speed: float | None = None) -> Any:
    return SimpleNamespace(now_s=now_s, called=called, ended=ended, prefill_tokens_per_s=speed)


def test_mirror_is_compared_with_the_tree_once_after_each_busy_time(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = Scheduler()
    request = scheduler.add(Request("a", [1]))
    scheduler.mirror_problem = "node 7 is on the device but not in the mirror"
    scheduler.hooks.take_news(scheduler, news(1.0))
    assert scheduler.num_checks == 0
    scheduler.waiting_queue.remove(request)
    for _ in range(3):
        report = scheduler.hooks.take_news(scheduler, news(1.0))
    assert scheduler.num_checks == 1
    assert report.figures["mirror_errors"] == 1
    assert "node 7 is on the device but not in the mirror" in caplog.text


def test_speed_is_measured_from_batches_that_compute_prompts() -> None:
    speed = PrefillSpeed()
    assert speed.tokens_per_s is None
    speed.end(1.0)
    speed.begin(1000, now_s=0.0)
    speed.begin(500, now_s=0.1)  # formed while the first one runs
    speed.end(10.0)
    assert speed.tokens_per_s == pytest.approx(100.0)
    speed.end(15.0)
    assert speed.tokens_per_s == pytest.approx(100.0)
    speed.begin(4, now_s=20.0)
    speed.end(21.0)
    assert speed.tokens_per_s == pytest.approx(100.0)
    for step in range(100):
        speed.begin(10_000, now_s=30.0 + step)
        speed.end(31.0 + step)
    assert speed.tokens_per_s == pytest.approx(10_000, rel=0.01)


def test_load_reports_see_what_is_cached_of_a_waiting_prompts_session() -> None:
    scheduler = Scheduler()
    scheduler.policy.paths.add(1, -1, 10)
    scheduler.policy.paths.place("s", 1)
    queue = [scheduler.add(Request("a", range(12), "s")), scheduler.add(Request("b", range(6), "s"))]
    queue.append(scheduler.add(Request("c", range(6))))
    assert scheduler.hooks.note_matched(None, None, queue)  # type: ignore[arg-type]
    assert [request.num_matched_prefix_tokens for request in queue] == [10, 5, 0]


@pytest.mark.parametrize(("low_first", "want"), [(False, [0, 0, 3]), (True, [0, 0, -3])])
def test_priorities_reach_the_policy_higher_first(low_first: bool, want: list[int]) -> None:
    scheduler = Scheduler(by_priority=True, low_first=low_first)
    seen: list[int] = []
    scheduler.policy.turn_arrived = lambda turn: seen.append(turn.priority)  # type: ignore[method-assign]
    for priority in (None, 0, 3):
        request = Request(f"r{priority}", [1])
        request.priority = priority
        scheduler.add(request)
    assert seen == want


def test_hinted_priority_counts_where_the_engine_has_none() -> None:
    scheduler = Scheduler()
    seen: list[int] = []
    scheduler.policy.turn_arrived = lambda turn: seen.append(turn.priority)  # type: ignore[method-assign]
    scheduler.add(Request("a", [1], "s", priority=4))
    assert seen == [4]
