"""AgentSched's decisions behind one door: who runs next, who is held, what is evicted and retracted first.

turn arrives ─ of a member ──────────────────────────────▶ may go, in the order of the score
             └ of a held session ─▶ in line, with a deadline
                    ├ there is room and it is the eldest ─▶ joins the working set
                    ├ it is the session's first, and there is room ─▶ visits
                    └ its deadline has passed ────────────▶ visits, or takes the smallest member's place
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from agentinfer.radix_ext import retention
from agentinfer.radix_ext.facade import KvState, Plan, TurnRequest
from agentinfer.radix_ext.fairness import Deadlines
from agentinfer.radix_ext.order import Scored, score
from agentinfer.radix_ext.paths import Claim, PathTree
from agentinfer.radix_ext.pressure import Pressure, pressure
from agentinfer.radix_ext.sessions import Session, SessionBook, Standing
from agentinfer.radix_ext.settings import SchedulingSettings
from agentinfer.radix_ext.tool_latency import ToolLatency
from agentinfer.radix_ext.working_set import WorkingSet

# Turns past their deadlines that run at once: each may need much of the cache for one turn only.
_MAX_DUE_VISITORS = 3
# First turns of held sessions that are tried for room in a plan, so that a long queue costs no more than a short one.
_NEW_TRIED = 16


class AgentPolicy:
    """See `facade.Policy`. Not thread-safe; everything is decided by what was told, in the order it was told."""

    def __init__(self, settings: SchedulingSettings, capacity_tokens: int, latency: ToolLatency | None = None) -> None:
        """`capacity_tokens`: the size of the cache. `latency`: what is known of tools at the start."""
        self.settings = settings
        self.paths = PathTree()
        self.latency = ToolLatency() if latency is None else latency
        self.working_set = WorkingSet(settings, self.paths, capacity_tokens)
        self.deadlines = Deadlines(settings, capacity_tokens)
        self._book = SessionBook()
        self._session_of: dict[str, Session] = {}
        self._due: dict[str, None] = {}  # waiting turns past their deadline, the earliest deadline first
        self._new: dict[str, None] = {}  # held first turns of sessions: nothing is recomputed for them
        self._pressure = Pressure(0.0, 1.0)
        self._longest_wait_s = 0.0
        self._counts = dict.fromkeys(("joined", "paused", "parked", "visits", "due"), 0)

    def turn_arrived(self, turn: TurnRequest) -> None:
        session = self._book.get(turn.session or turn.rid)
        if session is None:
            session = self._book.open(turn.session or turn.rid, turn.parent, turn.priority)
            self.working_set.hold(session)
        session.came_back(turn.arrived_s, self.latency)
        if not session.is_busy:
            session.context_tokens = turn.prompt_tokens
        session.waiting[turn.rid] = turn
        self._session_of[turn.rid] = session
        self._now_waits(session, turn)

    def turn_started(self, rid: str, now_s: float) -> None:
        session = self._session_of[rid]
        turn = session.waiting.pop(rid)
        session.running[rid] = turn
        self._longest_wait_s = max(self._longest_wait_s, now_s - turn.arrived_s)
        self._waits_no_more(session, rid)

    def turn_requeued(self, rid: str, now_s: float) -> None:
        session = self._session_of[rid]
        turn = session.running.pop(rid)
        session.waiting[rid] = turn
        self._now_waits(session, turn)

    def turn_finished(self, rid: str, now_s: float, context_tokens: int, tool: str | None, is_last: bool) -> None:
        session = self._session_of.pop(rid)
        turn = session.running.pop(rid)
        session.is_ended |= is_last or turn.is_last or turn.session is None
        session.finished_turn(context_tokens, now_s, () if tool is None else (tool,))
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
        committed = self.working_set.committed_tokens()
        committed = self._pause(committed)
        committed = self._let_in_due(now_s, committed)
        committed = self._let_in_eldest(now_s, committed)
        self._let_in_new(committed)
        if not kv.num_running and not any(True for _ in self._admitted()):
            # Work conserving: an idle engine takes the eldest turn whatever it displaces.
            head = self.working_set.head()
            if head is not None:
                self._join(head)
        return Plan((*self._due, *(rid for rid in self._ordered(now_s, kv) if rid not in self._due)))

    def wake_s(self, now_s: float) -> float | None:
        return self.deadlines.next_s()

    def victims(self, now_s: float) -> Iterator[int]:
        return retention.victims(self.paths, self._ascending(now_s), lambda session: self._rank(session, now_s))

    def retraction_order(self, rids: Sequence[str], now_s: float) -> list[str]:
        def worth(rid: str) -> tuple[object, ...]:
            session = self._session_of[rid]
            return (session.standing is not Standing.MEMBER, session.seniority, rid)

        return sorted(rids, key=worth)

    def snapshot(self, now_s: float) -> dict[str, Any]:
        waiting = [turn for session in self._book for turn in session.waiting.values()]
        return {
            "price": round(self._pressure.price, 4),
            "sessions": len(self._book),
            "members": len(self.working_set.members),
            "visitors": len(self.working_set.visitors),
            "held": self.working_set.num_in_line,
            "waiting": len(waiting),
            "committed_tokens": self.working_set.committed_tokens(),
            "capacity_tokens": self.working_set.capacity_tokens,
            "bound_s": round(self.deadlines.bound_s(), 3),
            "oldest_wait_s": round(max((now_s - turn.arrived_s for turn in waiting), default=0.0), 3),
            "longest_wait_s": round(self._longest_wait_s, 3),
            **self._counts,
        }

    def check_integrity(self) -> None:
        """Raises AssertionError naming the broken rule and what broke it."""
        self.paths.check_integrity()
        self.working_set.check_integrity(self._book)
        rids = {rid for session in self._book for rid in (*session.waiting, *session.running)}
        assert rids == set(self._session_of), f"turns without a session: {rids ^ set(self._session_of)}"
        held = {rid for s in self._book if s.standing is Standing.HELD for rid in s.waiting}
        assert held == set(self.deadlines), f"held but no deadline, or the reverse: {held ^ set(self.deadlines)}"

    # Letting sessions in and out. Each returns the tokens committed after it.

    def _pause(self, committed: int) -> int:
        """Members at a turn boundary leave, the youngest first, while more is committed than there is."""
        if committed <= self.working_set.capacity_tokens:
            return committed
        candidates = self.working_set.pausable()
        for session in candidates:
            if committed <= self.working_set.capacity_tokens or len(self.working_set.members) <= 1:
                break
            if not self._due.keys().isdisjoint(session.waiting):
                continue
            self._hold(session)
            self._counts["paused"] += 1
            committed = self.working_set.committed_tokens()
        return committed

    def _let_in_due(self, now_s: float, committed: int) -> int:
        while len(self._due) < _MAX_DUE_VISITORS:
            rid = self.deadlines.pop_due(now_s)
            if rid is None:
                break
            session = self._session_of[rid]
            self._due[rid] = None
            self._counts["due"] += 1
            if session.context_tokens > self.working_set.smallest_member_tokens():
                # To recompute a big context for one turn is waste: it stays, and the youngest member pauses.
                self._join(session)
            else:
                self._visit(session)
            committed = self.working_set.committed_tokens()
        return committed

    def _let_in_eldest(self, now_s: float, committed: int) -> int:
        while (head := self.working_set.head()) is not None:
            if not self.working_set.has_room_to_join(head, committed) and not self._park(head, now_s, committed):
                break
            self._join(head)
            committed = self.working_set.committed_tokens()
        return committed

    def _let_in_new(self, committed: int) -> None:
        for rid in list(islice(self._new, _NEW_TRIED)):
            session = self._session_of[rid]
            if self.working_set.has_room_to_visit(session, committed):
                self._visit(session)
                committed = self.working_set.committed_tokens()

    def _park(self, head: Session, now_s: float, committed: int) -> bool:
        """Members that stay away long give their places up if that lets `head` in."""
        away = self._away_by_rate(now_s)
        leaving: list[Session] = []
        for rate, session in away:
            recompute_s = session.context_tokens / self.settings.prefill_tokens_per_s
            if rate * self.settings.park_ratio * recompute_s > 1.0:
                break
            leaving.append(session)
            committed -= session.context_tokens
            if self.working_set.has_room_to_join(head, committed):
                for each in leaving:
                    self._hold(each)
                self._counts["parked"] += len(leaving)
                return True
        return False

    def _join(self, session: Session) -> None:
        self._settle(session)
        self.working_set.join(session)
        self._counts["joined"] += 1

    def _visit(self, session: Session) -> None:
        self._settle(session)
        self.working_set.visit(session)
        self._counts["visits"] += 1

    def _hold(self, session: Session) -> None:
        self.working_set.hold(session)
        for turn in session.waiting.values():
            self._promise(session, turn)

    # Turns in waiting.

    def _now_waits(self, session: Session, turn: TurnRequest) -> None:
        self.paths.claim(Claim.WAITING, session.id)
        if session.standing is Standing.HELD:
            self.working_set.hold(session)
            self._promise(session, turn)

    def _waits_no_more(self, session: Session, rid: str) -> None:
        self.deadlines.settle(rid)
        self._due.pop(rid, None)
        self._new.pop(rid, None)
        if not session.waiting:
            self.paths.release(Claim.WAITING, session.id)
            if session.standing is Standing.HELD:
                self.working_set.hold(session)

    def _promise(self, session: Session, turn: TurnRequest) -> None:
        self.deadlines.promise(turn.rid, turn.arrived_s, session.known_tokens)
        if not session.num_turns:
            self._new[turn.rid] = None

    def _settle(self, session: Session) -> None:
        for rid in session.waiting:
            self.deadlines.settle(rid)
            self._new.pop(rid, None)

    def _after_turn(self, session: Session) -> None:
        if session.is_busy:
            return
        if session.is_ended:
            self.working_set.remove(session)
            self.paths.forget(session.id)
            self._book.drop(session.id)
        elif session.standing is Standing.VISITOR:
            self.working_set.hold(session)

    # Orders.

    def _admitted(self) -> Iterator[tuple[Session, TurnRequest]]:
        for sessions in (self.working_set.members, self.working_set.visitors):
            for session in sessions.values():
                for turn in session.waiting.values():
                    yield session, turn

    def _ordered(self, now_s: float, kv: KvState) -> list[str]:
        """Waiting turns that may go, the highest score first."""
        scored: list[tuple[Session, TurnRequest, Scored]] = []
        for session, turn in self._admitted():
            hit = min(self.paths.cached_tokens(session.id), turn.prompt_tokens)
            parent = 0 if session.parent is None else self.paths.cached_tokens(session.parent)
            waited_s = now_s - turn.arrived_s
            scored.append((session, turn, Scored(turn.prompt_tokens, hit, waited_s, session.num_turns, parent)))
        demanded = sum(each.prompt_tokens - each.hit_tokens for _, _, each in scored)
        self._pressure = pressure(
            kv.free_tokens + kv.evictable_tokens,
            self.paths.claimed_tokens[Claim.WAITING],
            demanded,
            self.settings.price_max,
            self.settings.price_slope,
        )
        keys = {
            turn.rid: (-turn.priority, -score(each, self._pressure, self.settings), session.seniority, turn.rid)
            for session, turn, each in scored
        }
        return sorted(keys, key=keys.__getitem__)

    def _away_by_rate(self, now_s: float) -> list[tuple[float, Session]]:
        """Members away at tools, the one expected back last first."""
        away = [
            (self.latency.return_rate(session.tools, max(0.0, now_s - session.away_since_s)), session)
            for session in self.working_set.members.values()
            if session.away_since_s is not None
        ]
        return sorted(away, key=lambda each: (each[0], each[1].seniority))

    def _ascending(self, now_s: float) -> Iterator[str]:
        yield from list(self.working_set.held())
        yield from [session.id for _, session in self._away_by_rate(now_s)]
        rest = [*self.working_set.visitors.values(), *self.working_set.members.values()]
        yield from [session.id for session in sorted(rest, key=lambda s: s.seniority, reverse=True)]

    def _rank(self, session: str, now_s: float) -> retention.Rank:
        known = self._book.get(session)
        if known is None:
            return (0.0,)
        eldest_last = tuple(-float(each) for each in known.seniority)
        if known.standing is Standing.HELD:
            return (1.0, *eldest_last)
        if known.away_since_s is not None:
            return (2.0, self.latency.return_rate(known.tools, max(0.0, now_s - known.away_since_s)))
        return (3.0, *eldest_last)
