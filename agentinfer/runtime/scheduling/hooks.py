"""The scheduler's side: the queue in the policy's order, events into the book, news from the HTTP process.

The policy decides once a scheduling step, just before SGLang fills a prefill batch. What it holds back is taken out of
the waiting queue for that call only, so that everything else always sees the whole queue in order of arrival.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from agentinfer.radix_ext.facade import KvState
from agentinfer.runtime.scheduling.book import TurnBook, has_failed
from agentinfer.runtime.scheduling.speed import PrefillSpeed

logger = logging.getLogger(__name__)


class SchedulerHooks:
    """Methods that SGLang's scheduler calls through our hooks. One a process, as there is one scheduler in it; `bind`
    comes when that builds its prefix cache."""

    def __init__(self) -> None:
        self._book: TurnBook | None = None
        self._speed = PrefillSpeed()
        self._checked: object = None
        self._num_mirror_errors = 0
        # While a prefill pass runs: requests kept from it, by arrival; None between passes.
        self._held: list[Any] | None = None

    @property
    def book(self) -> TurnBook:
        assert self._book is not None, "the scheduler has no prefix cache yet"
        return self._book

    def bind(self, book: TurnBook) -> None:
        """`book` is this scheduler's."""
        self._book = book

    def fill_prefill_batch(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        """Around `_get_new_batch_prefill_raw`."""
        queue = scheduler.waiting_queue
        running_batch = kwargs.get("running_batch", args[-1] if args else None)
        if not queue or (scheduler.chunked_req is None and _has_no_room(scheduler, running_batch)):
            result = original(scheduler, *args, **kwargs)
            self._note_begun(result[0])
            if result[0] is not None:  # a request whose grammar got ready came and went in this very pass
                self.book.started(result[0].reqs)
            return result
        order, self._held = self._planned(scheduler, running_batch)
        scheduler.waiting_queue = order
        try:
            result = original(scheduler, *args, **kwargs)
            self._note_begun(result[0])
            return result
        finally:
            held, self._held = self._held, None
            if scheduler.waiting_queue is order and len(order) + len(held) == len(queue):
                scheduler.waiting_queue = queue  # nothing was taken, as in most passes, and nothing came
            else:
                self._settle(scheduler, queue, [*scheduler.waiting_queue, *held])

    def add_to_queue(self, original: Callable[..., Any], scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
        """Around `_add_request_to_queue`, by which new, retracted and preempted requests come, and those whose grammar
        is ready."""
        held = self._held
        if held:  # the length of the queue decides whether a request is refused
            scheduler.waiting_queue.extend(held)
        try:
            result = original(scheduler, req, *args, **kwargs)
        finally:
            if held:
                kept = {id(request) for request in held}
                present = {id(request) for request in scheduler.waiting_queue}
                self._held = held = [request for request in held if id(request) in present]
                scheduler.waiting_queue = [request for request in scheduler.waiting_queue if id(request) not in kept]
        if any(request is req for request in reversed(scheduler.waiting_queue)):
            self.book.arrived(req, _priority(scheduler, req))
            if held is not None:
                # Not planned yet: it is seen from the next pass on.
                scheduler.waiting_queue = [request for request in scheduler.waiting_queue if request is not req]
                held.append(req)
        return result

    def batch_processed(self, result: None, scheduler: Any, batch: Any, batch_result: Any) -> None:
        """After `process_batch_result`."""
        if batch.forward_mode.is_extend():
            self._speed.end(time.perf_counter())

    def keep_order(self, original: Callable[..., None], policy: Any, *args: Any, **kwargs: Any) -> None:
        """Instead of `SchedulePolicy.calc_priority`: the queue is in the plan's order; nothing is matched for it."""

    def note_matched(self, original: Callable[..., bool], policy: Any, waiting_queue: Sequence[Any]) -> bool:
        """Instead of `waiting_queue_prefix_matched`, which load reports ask before they read what is cached of each
        waiting prompt: that is what is cached of its session."""
        book = self.book
        for request in waiting_queue:
            session = book.session_of(request)
            cached = 0 if session is None else book.policy.paths.cached_tokens(session)
            request.num_matched_prefix_tokens = min(cached, max(0, request.seqlen - 1))
        return True

    def retraction_order(self, original: Callable[..., list[int]], reqs: Sequence[Any]) -> list[int]:
        """Instead of `_get_decode_retraction_order`: indices of `reqs`, the ones most worth keeping first."""
        stock = original(reqs)
        ranks = {rid: rank for rank, rid in enumerate(self.book.retraction_order([req.rid for req in reqs]))}
        order = sorted(stock, key=lambda index: ranks.get(reqs[index].rid, len(ranks)))
        from sglang.srt.runtime_context import get_schedule

        if get_schedule().retraction_policy == "priority":
            is_low_first = get_schedule().schedule_low_priority_values_first
            order.sort(key=lambda index: _normal_priority(reqs[index], is_low_first), reverse=True)
        return order

    def take_news(self, scheduler: Any, news: Any) -> Any:
        """News and time from the HTTP process; the answer goes back to it. The same on every rank."""
        book = self.book
        book.advance(news.now_s)
        for session, tools, started_s in news.called:
            book.tool_called(session, tools, started_s)
        for session in news.ended:
            book.session_ended(session)
        if news.prefill_tokens_per_s is not None:
            book.policy.engine_measured(news.prefill_tokens_per_s)
        book.sweep(_present(scheduler))
        if not len(book):
            self._check_mirror(scheduler)
        from agentinfer.runtime.scheduling.messages import SchedulingReport

        return SchedulingReport(figures=self.figures(scheduler))

    def figures(self, scheduler: Any) -> dict[str, Any]:
        """What the status route and the metrics show."""
        return {
            **self.book.policy.snapshot(self.book.now_s),
            "measured_prefill_tokens_per_s": self._speed.tokens_per_s,
            "open_turns": len(self.book),
            "swept_turns": self.book.num_swept,
            "unordered_evictions": scheduler.tree_cache.num_unordered_evictions,
            "mirror_errors": self._num_mirror_errors,
        }

    def _note_begun(self, batch: Any) -> None:
        if batch is not None:
            self._speed.begin(int(batch.extend_num_tokens), time.perf_counter())

    def _check_mirror(self, scheduler: Any) -> None:
        """Once after each time that the engine was busy: a policy over a mirror that is wrong evicts what it should
        keep, which nobody would notice otherwise. Requests are served all the same."""
        if self._checked == (done := self.book.num_closed):
            return
        self._checked = done
        try:
            scheduler.tree_cache.tree_core.check_mirror()
        except AssertionError as error:
            self._num_mirror_errors += 1
            logger.error(
                "agentinfer: the prefix cache and its mirror disagree (%s); answers are right, evictions may not be. "
                "Please report it; POST /flush_cache starts both anew",
                error,
            )

    def _settle(self, scheduler: Any, arrival: Sequence[Any], left: Sequence[Any]) -> None:
        """After a pass: what it took has started; what is `left` waits in the order of arrival, newcomers last."""
        left_ids, known_ids = set(map(id, left)), set(map(id, arrival))
        self.book.started([request for request in arrival if id(request) not in left_ids])
        scheduler.waiting_queue = [request for request in arrival if id(request) in left_ids]
        scheduler.waiting_queue += [request for request in left if id(request) not in known_ids]

    def _planned(self, scheduler: Any, running_batch: Any) -> tuple[list[Any], list[Any]]:
        """The waiting requests to try, in order, and those to keep back."""
        queue, book = scheduler.waiting_queue, self.book
        if book.num_waiting != len(queue) or len(book) > len(queue) + _num_running(scheduler, running_batch):
            book.sweep(_present(scheduler))
            for request in queue:
                book.arrived(request, _priority(scheduler, request))
        plan = book.policy.plan(book.now_s, _kv_state(scheduler, running_batch))
        order = book.requests(plan.order)
        if len(order) == len(queue):
            return order, []
        going = set(map(id, order))
        held = [request for request in queue if id(request) not in going]
        if book.num_failed:
            failed = [request for request in held if has_failed(request)]
            order, held = failed + order, [request for request in held if not has_failed(request)]
        return order, held


def _has_no_room(scheduler: Any, running_batch: Any) -> bool:
    """Whether SGLang will not look at the queue in this pass."""
    is_reset = scheduler.enable_priority_preemption or scheduler.is_hybrid_swa
    return bool(running_batch.batch_is_full and not is_reset)


def _kv_state(scheduler: Any, running_batch: Any) -> KvState:
    allocator, cache = scheduler.token_to_kv_pool_allocator, scheduler.tree_cache
    free = allocator.full_available_size() if cache.supports_swa() else allocator.available_size()
    return KvState(
        free_tokens=free,
        evictable_tokens=cache.full_evictable_size(),
        num_running=_num_running(scheduler, running_batch),
    )


def _num_running(scheduler: Any, running_batch: Any) -> int:
    return len(running_batch.reqs) + (scheduler.chunked_req is not None)


def _present(scheduler: Any) -> set[str]:
    """Ids of all requests that the engine has: waiting, waiting for a grammar, in a batch, in a chunked prefill."""
    batches = (scheduler.running_batch, scheduler.last_batch, *(batch for batch, _ in _results(scheduler)))
    requests = [
        *scheduler.waiting_queue,
        *scheduler.grammar_manager.grammar_queue,
        *(request for batch in batches if batch is not None for request in batch.reqs),
    ]
    if scheduler.chunked_req is not None:
        requests.append(scheduler.chunked_req)
    return {request.rid for request in requests if not request.finished() or request in scheduler.waiting_queue}


def _results(scheduler: Any) -> Sequence[Any]:
    """Batches whose results are still to be processed, where the scheduler overlaps."""
    return getattr(scheduler, "result_queue", ())


def _priority(scheduler: Any, request: Any) -> int:
    """Higher goes first; 0 where SGLang is not asked to schedule by priority, or the request names none."""
    if not scheduler.enable_priority_scheduling:
        return 0
    return _normal_priority(request, scheduler.schedule_low_priority_values_first)


def _normal_priority(request: Any, is_low_first: bool) -> int:
    priority = request.priority or 0
    return -priority if is_low_first else priority
