"""AgentSched's decisions behind one door: who runs next, who is held, what is evicted and retracted first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from agentinfer.radix_ext import retention
from agentinfer.radix_ext.admission import Admission
from agentinfer.radix_ext.facade import KvState, Plan, TurnRequest
from agentinfer.radix_ext.paths import Claim, PathTree
from agentinfer.radix_ext.pressure import Pressure, pressure
from agentinfer.radix_ext.sessions import Session, SessionBook, Standing
from agentinfer.radix_ext.settings import SchedulingSettings
from agentinfer.radix_ext.tool_latency import ToolLatency


class AgentPolicy:
    """See `facade.Policy`. Not thread-safe; everything is decided by what was told, in the order it was told."""

    def __init__(self, settings: SchedulingSettings, capacity_tokens: int, latency: ToolLatency | None = None) -> None:
        """`capacity_tokens`: the size of the cache. `latency`: what is known of tools at the start."""
        self.settings = settings
        self.paths = PathTree()
        self.latency = ToolLatency() if latency is None else latency
        self.admission = Admission(settings, self.paths, self.latency, capacity_tokens)
        self._book = SessionBook()
        self._session_of: dict[str, Session] = {}
        self._pressure = Pressure(0.0, 1.0)
        self._longest_wait_s = 0.0

    def engine_measured(self, prefill_tokens_per_s: float) -> None:
        """The engine's speed, as far as it is known by now; every rank is told the same at the same step."""
        self.settings = replace(self.settings, prefill_tokens_per_s=prefill_tokens_per_s)
        self.admission.use(self.settings)

    def turn_arrived(self, turn: TurnRequest) -> None:
        session = self._book.get(turn.session or turn.rid)
        if session is None:
            session = self._book.open(turn.session or turn.rid, turn.parent, turn.priority)
        session.came_back(turn.arrived_s, self.latency)
        if not session.is_busy:
            session.context_tokens = turn.prompt_tokens
        self._session_of[turn.rid] = session
        self._now_waits(session, turn)

    def turn_started(self, rid: str, now_s: float) -> None:
        session = self._session_of[rid]
        turn = session.running[rid] = session.waiting.pop(rid)
        self._longest_wait_s = max(self._longest_wait_s, now_s - turn.arrived_s)
        self._waits_no_more(session, rid)

    def turn_requeued(self, rid: str, now_s: float) -> None:
        session = self._session_of[rid]
        self._now_waits(session, session.running.pop(rid))

    def turn_finished(self, rid: str, now_s: float, context_tokens: int, tool: str | None, is_last: bool) -> None:
        session = self._session_of.pop(rid)
        turn = session.running.pop(rid)
        session.is_ended |= is_last or turn.is_last or turn.session is None
        session.finished_turn(turn, context_tokens, now_s, () if tool is None else (tool,))
        self._after_turn(session)

    def turn_dropped(self, rid: str, now_s: float) -> None:
        session = self._session_of.pop(rid)
        if session.waiting.pop(rid, None) is not None:
            self._waits_no_more(session, rid)
        session.running.pop(rid, None)
        # A session that was never answered leaves nothing to come back to.
        session.is_ended |= not session.num_turns
        if not session.is_busy:
            session.away_since_s = now_s
        self._after_turn(session)

    def tool_called(self, session: str, tools: Sequence[str], started_s: float) -> None:
        known = self._book.get(session)
        if known is not None and not known.is_busy:
            known.tools, known.away_since_s = tuple(tools), started_s

    def session_ended(self, session: str) -> None:
        known = self._book.get(session)
        if known is not None:
            known.is_ended = True
            self._after_turn(known)

    def plan(self, now_s: float, kv: KvState) -> Plan:
        self._note_moved()
        self.admission.update(now_s, self._session_of, kv.num_running)
        candidates, due = self.admission.candidates, self.admission.due
        self._pressure = pressure(
            kv.free_tokens + kv.evictable_tokens,
            self.paths.claimed_tokens[Claim.WAITING],
            candidates.demanded_tokens(),
            self.settings.price_max,
            self.settings.price_slope,
        )
        ordered = candidates.in_order(now_s, self._pressure)
        return Plan((*due, *(rid for rid in ordered if rid not in due)) if due else tuple(ordered))

    def wake_s(self, now_s: float) -> float | None:
        return self.admission.deadlines.next_s()

    def victims(self, now_s: float) -> Iterator[int]:
        self._note_moved()
        return retention.victims(self.paths, self._ascending(now_s), lambda session: self._rank(session, now_s))

    def retraction_order(self, rids: Sequence[str], now_s: float) -> list[str]:
        def worth(rid: str) -> tuple[object, ...]:
            session = self._session_of[rid]
            return (session.standing is not Standing.MEMBER, session.seniority, rid)

        return sorted(rids, key=worth)

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """What an operator is shown; `bound_s` is what a turn that arrives now is promised to wait at most."""
        waiting = [turn for session in self._book for turn in session.waiting.values()]
        working_set, deadlines = self.admission.working_set, self.admission.deadlines
        return {
            "price": round(self._pressure.price, 4),
            "sessions": len(self._book),
            "members": len(working_set.members),
            "visitors": len(working_set.visitors),
            "held": working_set.num_in_line,
            "waiting": len(waiting),
            "committed_tokens": working_set.committed_tokens(),
            "capacity_tokens": working_set.capacity_tokens,
            "bound_s": round(deadlines.bound_s(), 3),
            "oldest_wait_s": round(max((now_s - turn.arrived_s for turn in waiting), default=0.0), 3),
            "longest_wait_s": round(self._longest_wait_s, 3),
            **self.admission.counts,
        }

    def check_integrity(self) -> None:
        """Raises AssertionError naming the broken rule and what broke it."""
        self._note_moved()
        self.paths.check_integrity()
        self.admission.working_set.check_integrity(self._book)
        rids = {rid for session in self._book for rid in (*session.waiting, *session.running)}
        assert rids == set(self._session_of), f"turns without a session: {rids ^ set(self._session_of)}"
        waiting = {rid for each in self._book for rid in each.waiting}
        promised, due = set(self.admission.deadlines), set(self.admission.due)
        assert promised | due == waiting, f"waiting without a deadline, or the reverse: {(promised | due) ^ waiting}"
        assert not promised & due, f"due and promised a later time: {promised & due}"
        held = {rid for each in self._book if each.standing is Standing.HELD for rid in each.waiting}
        missing = [rid for rid in waiting - held if rid not in self.admission.candidates]
        assert not missing, f"neither held nor candidates: {missing}"
        assert len(self.admission.candidates) == len(waiting - held), "candidates that do not wait"

    def _now_waits(self, session: Session, turn: TurnRequest) -> None:
        session.waiting[turn.rid] = turn
        self.paths.claim(Claim.WAITING, session.id)
        self.admission.turn_waits(session, turn)

    def _waits_no_more(self, session: Session, rid: str) -> None:
        if not session.waiting:
            self.paths.release(Claim.WAITING, session.id)
        self.admission.turn_left(session, rid)

    def _after_turn(self, session: Session) -> None:
        if session.is_busy:
            return
        if session.is_ended:
            self.admission.working_set.remove(session)
            self.paths.forget(session.id)
            self._book.drop(session.id)
        else:
            self.admission.turns_over(session)

    def _note_moved(self) -> None:
        for name in self.paths.take_moved():
            session = self._book.get(name)
            if session is not None:
                self.admission.cached_tokens_changed(session)

    def _ascending(self, now_s: float) -> Iterator[str]:
        """The live sessions by `_rank`, lazily: most evictions end with the first few."""
        working_set = self.admission.working_set
        for session in working_set.held_and_cached():
            yield session.id
        for _, session in self.admission.away_by_rate(now_s):
            yield session.id
        rest = [*working_set.visitors.values(), *working_set.members.values()]
        rest = [session for session in rest if session.away_since_s is None]
        yield from [session.id for session in sorted(rest, key=lambda each: each.seniority, reverse=True)]

    def _rank(self, session: str, now_s: float) -> retention.Rank:
        known = self._book.get(session)
        if known is None:
            return (0.0,)
        eldest_last = tuple(-float(each) for each in known.seniority)
        if known.standing is Standing.HELD:
            return (1.0, *eldest_last)
        if known.away_since_s is not None:
            return (2.0, known.return_rate(now_s, self.latency))
        return (3.0, *eldest_last)
