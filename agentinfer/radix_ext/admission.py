"""Who is let in: sessions change their standing here, and turns that may go become candidates.

turn arrives ─ of a member ─────────────────────────────▶ candidate
             └ of a held session ─▶ in line, with a deadline
                    ├ it is the eldest, and there is room ─▶ its session joins the working set
                    ├ it is the session's first, and there is room ─▶ visits
                    └ its deadline has passed ─▶ visits, or takes the smallest member's place
"""

from __future__ import annotations

from itertools import islice

from agentinfer.radix_ext.facade import TurnRequest
from agentinfer.radix_ext.fairness import Deadlines
from agentinfer.radix_ext.order import Candidate, Candidates
from agentinfer.radix_ext.paths import PathTree
from agentinfer.radix_ext.sessions import Session, Standing
from agentinfer.radix_ext.settings import SchedulingSettings
from agentinfer.radix_ext.tool_latency import ToolLatency
from agentinfer.radix_ext.working_set import WorkingSet

# Turns past their deadlines that wait for room at once: each may need much of the cache, for one turn only.
_MAX_DUE = 3
# First turns of held sessions that are tried for room in a plan, so that a long queue costs no more than a short one.
_NEW_TRIED = 16
# Who is away changes slowly: parking is thought over this often.
_PARKING_PERIOD_S = 0.25


class Admission:
    """The working set, the deadlines of held turns, and the candidates. Not thread-safe.

    `due` holds candidates past their deadline, the earliest deadline first.
    """

    def __init__(
        self, settings: SchedulingSettings, paths: PathTree, latency: ToolLatency, capacity_tokens: int
    ) -> None:
        self._settings = settings
        self._paths = paths
        self._latency = latency
        self.working_set = WorkingSet(settings, paths, capacity_tokens)
        self.deadlines = Deadlines(settings, capacity_tokens)
        self.candidates = Candidates(settings)
        self.due: dict[str, None] = {}
        self.counts = dict.fromkeys(("joined", "paused", "parked", "visits", "due"), 0)
        self._new: dict[str, Session] = {}
        self._next_parking_s = float("-inf")

    def use(self, settings: SchedulingSettings) -> None:
        """Settings with another speed of the engine."""
        self._settings = settings
        self.deadlines.use(settings)
        self.candidates.use(settings)

    def turn_waits(self, session: Session, turn: TurnRequest) -> None:
        """A turn was queued."""
        self.deadlines.promise(turn.rid, turn.arrived_s)
        if session.standing is Standing.HELD:
            self.working_set.hold(session)
            self._hold_turn(session, turn)
        else:
            self.working_set.refresh(session)
            self._add_candidate(session, turn)

    def turn_left(self, session: Session, rid: str) -> None:
        """A turn left the queue."""
        self.deadlines.settle(rid)
        self.candidates.discard(rid)
        self.due.pop(rid, None)
        self._new.pop(rid, None)
        if session.standing is Standing.HELD:
            self.working_set.hold(session)

    def turns_over(self, session: Session) -> None:
        """No turn of the session waits or runs."""
        if session.standing is Standing.VISITOR:
            self.working_set.hold(session)
        else:
            self.working_set.refresh(session)

    def cached_tokens_changed(self, session: Session) -> None:
        """More or less of the session's context is cached than before."""
        self.working_set.refresh(session)
        if session.standing is not Standing.HELD:
            cached = self._paths.cached_tokens(session.id)
            for rid in session.waiting:
                self.candidates.set_hit_tokens(rid, cached)

    def update(self, now_s: float, session_of: dict[str, Session], num_running: int) -> None:
        """Lets sessions in and out; after it, who may go is among the candidates. `num_running` requests run."""
        self._pause_youngest()
        self._let_in_due(now_s, session_of)
        self._let_in_eldest(now_s, num_running)
        self._let_in_new()
        if not num_running and not len(self.candidates):
            # Work conserving: an idle engine takes a turn whatever it displaces, and the one that costs least.
            cheapest = self.working_set.cheapest_in_line()
            if cheapest is not None:
                self._visit(cheapest)

    def away_by_rate(self, now_s: float) -> list[tuple[float, Session]]:
        """Members away at tools with their return rates in 1/s, the one expected back last first."""
        away = [
            (session.return_rate(now_s, self._latency), session)
            for session in self.working_set.members.values()
            if session.away_since_s is not None
        ]
        return sorted(away, key=lambda each: (each[0], each[1].seniority))

    def _pause_youngest(self) -> None:
        """Members at a turn boundary leave while more is committed than there is."""
        if self._has_overflow():
            for session in self.working_set.pausable():
                if not self._has_overflow() or len(self.working_set.members) == 1:
                    break
                if self.due.keys().isdisjoint(session.waiting):
                    self._hold(session)
                    self.counts["paused"] += 1

    def _let_in_due(self, now_s: float, session_of: dict[str, Session]) -> None:
        while len(self.due) < _MAX_DUE and (rid := self.deadlines.pop_due(now_s)) is not None:
            session = session_of[rid]
            self.due[rid] = None
            if session.standing is not Standing.HELD:
                continue
            self.counts["due"] += 1
            if session.context_tokens > self.working_set.smallest_member_tokens():
                # To recompute a big context for one turn is waste: it stays, and the youngest member pauses.
                self._join(session)
            else:
                self._visit(session)

    def _let_in_eldest(self, now_s: float, num_running: int) -> None:
        # A busy engine gains nothing from swapping one context for another.
        has_little_to_do = num_running + len(self.candidates) < self._settings.park_below
        while (head := self.working_set.head()) is not None:
            if self.working_set.has_room_to_join(head) or (has_little_to_do and self._park_for(head, now_s)):
                self._join(head)
            else:
                break

    def _let_in_new(self) -> None:
        for session in list(islice(self._new.values(), _NEW_TRIED)):
            if session.standing is Standing.HELD and self.working_set.has_room_to_visit(session):
                self._visit(session)

    def _park_for(self, head: Session, now_s: float) -> bool:
        """Members that stay away long give their places up if that lets `head` in."""
        if now_s < self._next_parking_s:
            return False
        self._next_parking_s = now_s + _PARKING_PERIOD_S
        leaving: list[Session] = []
        freed_tokens = 0
        for rate, session in self.away_by_rate(now_s):
            recompute_s = session.context_tokens / self._settings.prefill_tokens_per_s
            if rate * self._settings.park_ratio * recompute_s < 1.0:
                leaving.append(session)
                freed_tokens += session.context_tokens
                if self.working_set.has_room_to_join(head, freed_tokens):
                    for each in leaving:
                        self._hold(each)
                    self.counts["parked"] += len(leaving)
                    return True
        return False

    def _has_overflow(self) -> bool:
        return self.working_set.committed_tokens() > self.working_set.capacity_tokens

    def _join(self, session: Session) -> None:
        self.working_set.join(session)
        self._become_candidates(session)
        self.counts["joined"] += 1

    def _visit(self, session: Session) -> None:
        self.working_set.visit(session)
        self._become_candidates(session)
        self.counts["visits"] += 1

    def _hold(self, session: Session) -> None:
        self.working_set.hold(session)
        for turn in session.waiting.values():
            self.candidates.discard(turn.rid)
            self._hold_turn(session, turn)

    def _hold_turn(self, session: Session, turn: TurnRequest) -> None:
        self.deadlines.hold(turn.rid, session.known_tokens)
        if not session.num_turns:
            self._new[turn.rid] = session

    def _become_candidates(self, session: Session) -> None:
        for turn in session.waiting.values():
            self.deadlines.let_in(turn.rid)
            self._new.pop(turn.rid, None)
            self._add_candidate(session, turn)

    def _add_candidate(self, session: Session, turn: TurnRequest) -> None:
        hit = min(self._paths.cached_tokens(session.id), turn.prompt_tokens)
        parent = 0 if session.parent is None else self._paths.cached_tokens(session.parent)
        self.candidates.add(
            turn.rid,
            Candidate(turn.prompt_tokens, hit, turn.arrived_s, session.num_turns, parent, turn.priority),
        )
