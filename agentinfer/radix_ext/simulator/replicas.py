"""A closed loop of sessions over several engines: where one session ends the next begins, and none moves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from agentinfer.radix_ext.facade import Policy
from agentinfer.radix_ext.simulator.agenda import Agenda
from agentinfer.radix_ext.simulator.baselines import StockPolicy
from agentinfer.radix_ext.simulator.costs import EngineCosts, SimulationError
from agentinfer.radix_ext.simulator.engine import Engine
from agentinfer.radix_ext.simulator.request import Request
from agentinfer.radix_ext.simulator.tally import Tally
from agentinfer.radix_ext.simulator.workload import SharedSegment, SimSession, SimTurn


class ClosedLoop:
    """Keeps `live_sessions` sessions going until all of `sessions` have ended; children of sessions come on top.

    A session, a child too, is placed on the engine with the fewest live ones, the first of equals, and all its turns go
    there: its context is cached nowhere else.
    """

    def __init__(
        self, sessions: Iterable[SimSession], live_sessions: int, engines: list[Engine], agenda: Agenda, tally: Tally
    ) -> None:
        self._todo = deque(sessions)
        self._engines = engines
        self._agenda = agenda
        self._tally = tally
        self._num_live = [0] * len(engines)
        for _ in range(min(live_sessions, len(self._todo))):
            self._begin_next()

    @property
    def num_live(self) -> int:
        """Sessions that have begun and not ended, children included."""
        return sum(self._num_live)

    def _begin_next(self) -> None:
        if not self._todo:
            return
        begun_s = self._agenda.now_s

        def ended(now_s: float) -> None:
            self._tally.completions_s.append(now_s - begun_s)
            self._begin_next()

        self._begin(self._todo.popleft(), None, ended)

    def _begin(self, session: SimSession, parent: str | None, ended: Callable[[float], None]) -> None:
        place = min(range(len(self._engines)), key=self._num_live.__getitem__)
        self._num_live[place] += 1

        def left(now_s: float) -> None:
            self._num_live[place] -= 1
            ended(now_s)

        _Course(session, parent, self._engines[place], self, left).next_turn()

    def begin_child(self, session: SimSession, parent: str, ended: Callable[[float], None]) -> None:
        self._begin(session, parent, ended)

    @property
    def agenda(self) -> Agenda:
        return self._agenda


class _Course:
    """The way of one session through its turns."""

    def __init__(
        self, session: SimSession, parent: str | None, engine: Engine, loop: ClosedLoop, ended: Callable[[float], None]
    ) -> None:
        self._session = session
        self._parent = parent
        self._engine = engine
        self._loop = loop
        self._ended = ended
        self._number = 0
        self._pending = 0  # children that have not ended, and the gap

    def next_turn(self) -> None:
        session, number = self._session, self._number
        turn = session.turns[number]
        now_s = self._loop.agenda.now_s
        request = Request(
            rid=f"{session.id}#{number}",
            session=session.id,
            parent=self._parent,
            arrived_s=now_s,
            prompt_tokens=turn.prompt_tokens,
            output_tokens=turn.output_tokens,
            known_tokens=turn.kept_tokens if number else 0,
            is_last=number == len(session.turns) - 1,
            tool=turn.tool,
            shared=_kept_whole(session, turn),
            ended=self._turn_ended,
        )
        self._engine.submit(request, turn.kept_tokens if number else None)

    def _turn_ended(self, now_s: float) -> None:
        turn = self._session.turns[self._number]
        self._number += 1
        self._pending = 1 + len(turn.children)
        for child in turn.children:
            self._loop.begin_child(child, self._session.id, self._one_done)
        if self._number == len(self._session.turns):
            self._one_done(now_s)
        else:
            self._loop.agenda.at(now_s + turn.gap_s, lambda: self._one_done(now_s + turn.gap_s))

    def _one_done(self, now_s: float) -> None:
        self._pending -= 1
        if self._pending:
            return
        if self._number == len(self._session.turns):
            self._ended(now_s)
        else:
            self.next_turn()


def _kept_whole(session: SimSession, turn: SimTurn) -> tuple[SharedSegment, ...]:
    """The shared segments that the turn's prompt still begins with."""
    end = 0
    for count, segment in enumerate(session.shared):
        end += segment.num_tokens
        if end > turn.kept_tokens:
            return session.shared[:count]
    return session.shared


def run(
    sessions: Iterable[SimSession],
    live_sessions: int,
    kv_tokens: int,
    policy: Callable[[int], Policy],
    costs: EngineCosts,
    replicas: int = 1,
    host_kv_tokens: int = 0,
    check: Callable[[list[Engine], ClosedLoop], None] | None = None,
) -> tuple[Tally, float, list[Policy]]:
    """Simulates until the last session has ended; returns what happened, the seconds it took and the policies.

    `kv_tokens` and `host_kv_tokens` are those of one replica, `policy` makes a replica's own for its number. `check` is
    called after every event. Raises SimulationError where a session does not fit into a replica's cache.
    """
    sessions = list(sessions)
    for session in sessions:
        if not fits(session, kv_tokens):
            raise SimulationError(
                f"session {session.id}: a context of {session.longest_context_tokens} tokens does not fit into "
                f"{kv_tokens} KV tokens; leave it out or give more"
            )
    agenda, tally = Agenda(), Tally()
    policies = [policy(number) for number in range(replicas)]
    engines = [Engine(costs, kv_tokens, each, agenda, tally, host_kv_tokens) for each in policies]
    for each, engine in zip(policies, engines, strict=True):
        if host_kv_tokens and isinstance(each, StockPolicy):
            each.host = engine.cache.host
    loop = ClosedLoop(sessions, live_sessions, engines, agenda, tally)
    agenda.run(None if check is None else lambda: check(engines, loop))
    if loop.num_live or len(tally.completions_s) != len(sessions):
        raise SimulationError(f"{loop.num_live} sessions never ended: the policy has lost their turns")
    tally.evicted_tokens = sum(engine.cache.evicted_tokens for engine in engines)
    return tally, agenda.now_s, policies


def fits(session: SimSession, kv_tokens: int) -> bool:
    """Whether a cache of `kv_tokens` holds its longest context, with the one token that is computed twice at most."""
    return session.longest_context_tokens + 1 <= kv_tokens
