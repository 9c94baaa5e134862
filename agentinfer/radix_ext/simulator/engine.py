"""One simulated engine: continuous batching with chunked prefill, a prefix cache, and a policy that decides.

At each boundary between steps the engine ends what is done, asks the policy for a plan where something has changed,
and admits turns in the plan's order until one does not fit or the chunk is full, as SGLang's PrefillAdder does. Then
comes a chunk of prompts or, without any, a run of decode steps up to the next end of a turn. An arrival cuts it short.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from agentinfer.radix_ext.facade import KvState, Policy, TurnRequest
from agentinfer.radix_ext.simulator.agenda import Agenda
from agentinfer.radix_ext.simulator.cache import SimCache
from agentinfer.radix_ext.simulator.costs import EngineCosts, SimulationError
from agentinfer.radix_ext.simulator.host import HostTier
from agentinfer.radix_ext.simulator.request import Request
from agentinfer.radix_ext.simulator.tally import Tally

# An idle engine asks a policy that holds everything back at least this often, and gives up on it after this long.
_IDLE_TICK_S = 1.0
_IDLE_LIMIT_S = 86_400.0


class Engine:
    """Steps itself through `agenda`. `policy` belongs to this engine: its path tree is the engine's cache."""

    def __init__(
        self, costs: EngineCosts, kv_tokens: int, policy: Policy, agenda: Agenda, tally: Tally, host_kv_tokens: int = 0
    ) -> None:
        self.policy = policy
        self.cache = SimCache(kv_tokens, policy.paths, HostTier(host_kv_tokens))
        self.waiting: dict[str, Request] = {}
        self._costs = costs
        self._agenda = agenda
        self._tally = tally
        self._prefilling: list[Request] = []
        self._running: dict[str, Request] = {}
        self._ends: list[tuple[int, int, Request]] = []  # heap of (last step, order of joining, request)
        self._order = itertools.count()
        self._step = 0
        self._context_tokens = 0  # of all running turns
        self._at_boundary: Callable[[], None] | None = None  # what the steps under way bring; None while idle
        self._generation = 0  # boundaries entered in the agenda before are void
        self._decoding_since_s: float | None = None
        self._decoding_steps = 0
        self._has_changed = True
        self._replan_s: float | None = None
        self._idle_since_s: float | None = None

    @property
    def num_running(self) -> int:
        return len(self._running) + len(self._prefilling)

    @property
    def is_stalled(self) -> bool:
        """Whether it stands idle although turns wait: its policy lets none of them go."""
        return self._idle_since_s is not None

    def submit(self, request: Request, kept_tokens: int | None) -> None:
        """A turn arrives now. `kept_tokens` of its session's context remain; None for a session's first turn."""
        if kept_tokens is None:
            self.cache.match(request.session, request.shared)
        else:
            self.cache.cut(request.session, kept_tokens)
        self.waiting[request.rid] = request
        self._has_changed = True
        self.policy.turn_arrived(
            TurnRequest(
                rid=request.rid,
                session=request.session,
                arrived_s=self._agenda.now_s,
                prompt_tokens=request.prompt_tokens,
                parent=request.parent,
                is_last=request.is_last,
            )
        )
        if self._at_boundary is None or self._idle_since_s is not None:
            self._schedule(self._agenda.now_s, _nothing)
        elif self._decoding_since_s is not None and self.num_running < self._costs.max_running:
            self._stop_decoding(self._agenda.now_s)

    def check_integrity(self) -> None:
        """Recounts tokens and turns. Raises AssertionError naming the broken rule."""
        inside = [*self._prefilling, *self._running.values()]
        self.cache.check_integrity([request.node for request in inside])
        own = sum(map(self._own_tokens, inside))
        assert self.cache.own_tokens == own, f"{self.cache.own_tokens} own tokens counted, recounted {own}"
        assert self.num_running <= self._costs.max_running, f"{self.num_running} turns run"
        held = {request.rid for request in inside}
        assert len(held) == len(inside), "a turn is in the engine twice"
        assert not held & self.waiting.keys(), "a turn waits and runs"

    def _schedule(self, time_s: float, then: Callable[[], None]) -> None:
        self._generation += 1
        generation = self._generation
        self._at_boundary = then

        def reached() -> None:
            if generation == self._generation:
                self._boundary()

        self._agenda.at(time_s, reached)

    def _boundary(self) -> None:
        bring, self._at_boundary = self._at_boundary, None
        assert bring is not None, "a boundary without steps before it"
        bring()
        self._end_turns()
        self._admit()
        if not self.num_running and self.waiting:
            self._wait_idle()
            return
        self._idle_since_s = None
        if self._prefilling:
            self._start_chunk()
        elif self._running:
            self._start_decoding()

    def _admit(self) -> None:
        costs, now_s = self._costs, self._agenda.now_s
        budget = costs.chunk_tokens - sum(request.left_to_prefill for request in self._prefilling)
        if not self.waiting or budget <= 0 or self.num_running >= costs.max_running:
            return
        if not self._has_changed and (self._replan_s is None or now_s < self._replan_s):
            return
        self._has_changed = False
        self._tally.num_plans += 1
        cache = self.cache
        plan = self.policy.plan(now_s, KvState(cache.free_tokens, cache.evictable_tokens, self.num_running))
        for rid in plan.order:
            if budget <= 0 or self.num_running >= costs.max_running:
                self._has_changed = True  # the next chunk has room for more of this plan
                break
            request = self.waiting[rid]
            if not self._start(request):
                break
            budget -= request.left_to_prefill
        self._replan_s = self.policy.wake_s(now_s) if self.waiting else None

    def _start(self, request: Request) -> bool:
        """Admits a waiting turn if it fits with room for what it and the others will say."""
        cache, costs = self.cache, self._costs
        node = cache.match(request.session, request.shared)
        cached = min(cache.paths.end(node), request.prompt_tokens - 1)
        needed = request.prompt_tokens - cached + 1  # with the token that prefill gives
        reserved = min(costs.reserved_output_tokens, cache.capacity_tokens - request.prompt_tokens)
        if self.num_running:
            reserved += int(self.num_running * costs.running_reserve * costs.reserved_output_tokens)
        cache.lock(node)
        if needed + reserved > cache.free_tokens + cache.evictable_tokens and self.num_running:
            cache.unlock(node)
            return False
        now_s = self._agenda.now_s
        if not cache.make_room(needed, self.policy.victims(now_s)):
            cache.unlock(node)
            return False
        loaded = cache.host.loadable_tokens(request.session, cached, request.prompt_tokens - 1)
        cache.host.release(request.session)
        cache.own_tokens += needed
        request.node, request.own_tokens = node, needed
        request.load_tokens, request.has_begun = loaded, False
        request.prefilled_tokens = cached + loaded
        self._count_start(request, cached, loaded)
        if request.started_s is None:
            request.started_s = now_s
        del self.waiting[request.rid]
        self._prefilling.append(request)
        self.policy.turn_started(request.rid, now_s)
        return True

    def _count_start(self, request: Request, cached: int, loaded: int) -> None:
        tally = self._tally
        if request.started_s is None:
            tally.waits_s.append(self._agenda.now_s - request.arrived_s)
        tally.prompt_tokens += request.prompt_tokens
        tally.hit_tokens += cached
        tally.loaded_tokens += loaded
        tally.recomputed_tokens += max(0, request.known_tokens - cached - loaded)

    def _start_chunk(self) -> None:
        """The next tokens of prompts, and where chunks are mixed one token of each running turn."""
        costs = self._costs
        seconds, budget = 0.0, costs.chunk_tokens
        num_done = 0
        for request in self._prefilling:
            if not request.has_begun:
                request.has_begun = True
                seconds += costs.request_s + request.load_tokens / costs.load_tokens_per_s
            count = min(budget, request.left_to_prefill)
            seconds += costs.chunk_s(count, request.prefilled_tokens)
            request.prefilled_tokens += count
            budget -= count
            num_done += not request.left_to_prefill
            if not budget:
                break
        done = self._prefilling[:num_done]
        num_steps = int(costs.is_mixed and bool(self._running) and self._has_room_to_decode())
        self._tally.num_chunks += 1
        self._tally.busy_s += seconds

        def bring() -> None:
            if num_steps:
                self._advance(1)
            del self._prefilling[:num_done]
            for request in done:
                self._join(request)

        self._schedule(self._agenda.now_s + seconds, bring)

    def _join(self, request: Request) -> None:
        """A prefilled turn decodes from now on; its first token is there."""
        if request.shared:
            before = self.cache.paths.end(request.node)
            request.node = self.cache.insert_shared(request.session, request.node, request.shared)
            request.own_tokens -= max(0, self.cache.paths.end(request.node) - before)
        request.joined_step, request.last_step = self._step, self._step + request.output_tokens - 1
        self._running[request.rid] = request
        self._context_tokens += request.prompt_tokens + 1
        heapq.heappush(self._ends, (request.last_step, next(self._order), request))

    def _start_decoding(self) -> None:
        costs = self._costs
        has_room = self._has_room_to_decode()
        assert has_room, "a single turn does not fit into the cache"
        count, now_s = len(self._running), self._agenda.now_s
        steps = min(self._next_end() - self._step, self.cache.free_tokens // count)
        if self.waiting and self._replan_s is not None and self.num_running < costs.max_running:
            until_s = max(self._replan_s - now_s, 0.0)
            steps = min(steps, costs.steps_until(until_s, count, self._context_tokens))
        self._decode(now_s, steps)

    def _decode(self, since_s: float, steps: int) -> None:
        self._decoding_since_s, self._decoding_steps = since_s, steps
        seconds = self._costs.steps_s(steps, len(self._running), self._context_tokens)

        def bring() -> None:
            self._decoding_since_s = None
            self._tally.busy_s += seconds
            self._advance(steps)

        self._schedule(since_s + seconds, bring)

    def _stop_decoding(self, now_s: float) -> None:
        """The run of decode steps ends with the step under way at `now_s`."""
        since_s = self._decoding_since_s
        assert since_s is not None, "no decode steps under way"
        steps = self._costs.steps_until(now_s - since_s, len(self._running), self._context_tokens)
        if steps < self._decoding_steps:
            self._decode(since_s, steps)

    def _advance(self, steps: int) -> None:
        """All running turns say `steps` tokens."""
        self._step += steps
        self._tally.num_decode_steps += steps
        count = len(self._running)
        self._context_tokens += steps * count
        self.cache.own_tokens += steps * count

    def _has_room_to_decode(self) -> bool:
        """Makes room for a token of each running turn: by eviction, then by taking turns back, but for the last one."""
        while not self.cache.make_room(len(self._running), self.policy.victims(self._agenda.now_s)):
            if len(self._running) == 1:
                return False
            self._retract()
        return True

    def _retract(self) -> None:
        """Takes back the turn that the policy would miss least; its prompt stays cached as long as there is room."""
        now_s = self._agenda.now_s
        # In SGLang's own order, for policies that have none: what has said most is kept longest.
        running = self._running.values()
        stock = sorted(running, key=lambda each: (each.joined_step, each.prompt_tokens))
        rid = self.policy.retraction_order([request.rid for request in stock], now_s)[-1]
        request = self._running[rid]
        said = request.output_tokens - (request.last_step - self._step)
        self._context_tokens -= request.prompt_tokens + said
        self._leave(request, request.prompt_tokens)
        request.prompt_tokens += said
        request.output_tokens -= said
        request.known_tokens = request.prompt_tokens
        request.num_retractions += 1
        self._tally.num_retractions += 1
        self._tally.output_tokens += said
        self.waiting[rid] = request
        self.policy.turn_requeued(rid, now_s)

    def _next_end(self) -> int:
        """The step with which the next running turn ends."""
        while True:
            step, _, request = self._ends[0]
            if self._running.get(request.rid) is request and request.last_step == step:
                return step
            heapq.heappop(self._ends)

    def _end_turns(self) -> None:
        while self._running and self._next_end() <= self._step:
            self._end(heapq.heappop(self._ends)[2])

    def _end(self, request: Request) -> None:
        now_s, tally = self._agenda.now_s, self._tally
        context = request.prompt_tokens + request.output_tokens
        self._context_tokens -= context
        self._leave(request, context)
        assert request.started_s is not None, "a turn ends that never started"
        tally.turns_s.append(now_s - request.arrived_s)
        tally.serves_s.append(now_s - request.started_s)
        tally.output_tokens += request.output_tokens
        self.policy.turn_finished(request.rid, now_s, context, request.tool, request.is_last)
        if request.is_last:
            self.policy.session_ended(request.session)
            self.cache.forget(request.session)
        request.ended(now_s)

    def _leave(self, request: Request, cached_tokens: int) -> None:
        """The turn runs no longer; of its context, `cached_tokens` stay in the cache for now."""
        own = self._own_tokens(request)
        del self._running[request.rid]
        self.cache.insert(request.session, request.node, cached_tokens, own)
        request.own_tokens = 0
        self._has_changed = True

    def _own_tokens(self, request: Request) -> int:
        said = self._step - request.joined_step if request.rid in self._running else 0
        return request.own_tokens + said

    def _wait_idle(self) -> None:
        """Nothing runs and the policy lets nobody go: ask again."""
        now_s = self._agenda.now_s
        self._idle_since_s = now_s if self._idle_since_s is None else self._idle_since_s
        if now_s - self._idle_since_s > _IDLE_LIMIT_S:
            raise SimulationError(f"the policy has let none of {len(self.waiting)} waiting turns go for a day")
        wake_s = self._replan_s if self._replan_s is not None and self._replan_s > now_s else now_s + _IDLE_TICK_S
        self._has_changed = True
        self._schedule(wake_s, _nothing)


def _nothing() -> None:
    """Steps that bring nothing."""
