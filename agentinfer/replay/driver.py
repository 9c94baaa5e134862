"""The closed loop: C sessions live at once, each waiting for its reply and its tool before the next turn."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentinfer.clock import Clock
from agentinfer.replay.client import Exchange
from agentinfer.replay.render import RequestOptions, reply_text, request_body
from agentinfer.replay.session import Session, Turn


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Concurrency and waits. Draws depend on seed, session id and turn only, so two runs wait alike, in any order.

    `gap_scale` multiplies recorded gaps (0: no waits), `default_gap_s` stands in where none was recorded, `gap_jitter`
    varies each by up to that fraction, and the first sessions start within `start_spread_s`.
    """

    concurrency: int = 1
    gap_scale: float = 1.0
    default_gap_s: float = 0.0
    gap_jitter: float = 0.0
    start_spread_s: float = 0.0
    seed: int = 0


@dataclass(slots=True)
class TurnResult:
    """One turn as measured. `started_s` and `tool_started_s` are seconds since the replay began.

    `is_as_recorded` is None where nothing was forced or the turn failed. `server` holds what the server told about the
    turn afterwards (queue and prefill seconds, cached tokens), empty where it tells nothing.
    """

    index: int
    started_s: float
    exchange: Exchange
    tools: tuple[str, ...] = ()
    gap_s: float = 0.0
    is_as_recorded: bool | None = None
    server: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class SessionResult:
    """A session as replayed. `is_complete`: every turn answered; a failed turn ends the session."""

    session: Session
    wire_id: str
    is_warmup: bool
    started_s: float
    ended_s: float = 0.0
    turns: list[TurnResult] = field(default_factory=list)
    is_complete: bool = False


class Sender(Protocol):
    async def send(self, body: dict[str, Any]) -> Exchange: ...


class Observer(Protocol):
    """Told of progress; calls must return at once, they are on the timed path."""

    def turn_done(self, session: SessionResult, turn: TurnResult) -> None: ...

    def session_done(self, session: SessionResult) -> None: ...


class Replay:
    """Plays sessions against one server. `sleep` and `clock` are injected; `run_id` keeps session ids apart by run."""

    def __init__(
        self,
        client: Sender,
        request: RequestOptions,
        loop: LoopOptions,
        clock: Clock,
        run_id: str,
        observer: Observer | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._request = request
        self._loop = loop
        self._clock = clock
        self._run_id = run_id
        self._observer = observer
        self._sleep = sleep
        self._began_s = clock.monotonic_s()
        self._wire_ids: dict[str, str] = {}

    async def run(self, sessions: Sequence[Session], is_warmup: bool = False) -> list[SessionResult]:
        """Results in the order of `sessions`. A new session starts as soon as a live one ends."""
        results: list[SessionResult | None] = [None] * len(sessions)
        waiting = iter(enumerate(sessions))

        async def worker(number: int) -> None:
            if self._loop.start_spread_s:
                await self._sleep(self._draw("start", number).uniform(0.0, self._loop.start_spread_s))
            # One iterator for all workers: sessions start in order, and nothing awaits between taking and starting.
            for position, session in waiting:
                results[position] = await self._session(session, is_warmup)

        async with asyncio.TaskGroup() as workers:
            for number in range(min(self._loop.concurrency, len(sessions))):
                workers.create_task(worker(number))
        return [result for result in results if result is not None]

    async def _session(self, session: Session, is_warmup: bool) -> SessionResult:
        result = SessionResult(session, self._wire_id(session), is_warmup, started_s=self._now_s())
        for turn in session.turns:
            done = await self._turn(session, turn, result.wire_id)
            result.turns.append(done)
            if self._observer:
                self._observer.turn_done(result, done)
            if done.exchange.error:
                break
            if turn is not session.turns[-1]:
                done.gap_s = self._gap_s(session, turn)
                if done.gap_s > 0.0:
                    await self._sleep(done.gap_s)
        else:
            result.is_complete = True
        result.ended_s = self._now_s()
        if self._observer:
            self._observer.session_done(result)
        return result

    def _wire_id(self, session: Session) -> str:
        """Unique in this run and over runs, printable, safe in a URL path, within the server's 256 characters."""
        readable = re.sub("[^A-Za-z0-9_.-]", "_", session.id)[:200]
        wire_id = f"{readable}.{len(self._wire_ids)}@{self._run_id}"
        self._wire_ids[session.id] = wire_id
        return wire_id

    async def _turn(self, session: Session, turn: Turn, wire_id: str) -> TurnResult:
        # A sub-agent's session is played like any other; its parent is named once that one has begun.
        parent_wire_id = self._wire_ids.get(session.parent) if session.parent is not None else None
        body = request_body(session, turn, wire_id, self._request, parent_wire_id)
        started_s = self._now_s()
        exchange = await self._client.send(body)
        as_recorded = is_as_recorded(turn, exchange) if self._request.forced and not exchange.error else None
        return TurnResult(turn.index, started_s, exchange, turn.tools, is_as_recorded=as_recorded)

    def _gap_s(self, session: Session, turn: Turn) -> float:
        gap_s = self._loop.default_gap_s if turn.gap_s is None else turn.gap_s
        if self._loop.gap_jitter:
            jitter = self._loop.gap_jitter
            gap_s *= self._draw(session.id, turn.index).uniform(1.0 - jitter, 1.0 + jitter)
        return gap_s * self._loop.gap_scale

    def _draw(self, *key: object) -> random.Random:
        return random.Random(f"{self._loop.seed}:{key}")

    def _now_s(self) -> float:
        return self._clock.monotonic_s() - self._began_s


def is_as_recorded(turn: Turn, exchange: Exchange) -> bool:
    """Whether the engine emitted what was recorded.

    A server with a tool-call parser takes the calls out of the text: then text and calls are compared apart, arguments
    by value, since parsers write the JSON anew. Blank space where the parser cut is not counted.
    """
    if not exchange.tool_calls:
        return exchange.text == reply_text(turn.reply)
    recorded_calls = turn.reply.get("tool_calls", ())
    said = [(call["name"], _value(call["arguments"])) for call in exchange.tool_calls]
    wanted = [(call["function"]["name"], _value(call["function"]["arguments"])) for call in recorded_calls]
    text = reply_text({**turn.reply, "tool_calls": ()})
    return said == wanted and exchange.text.strip() == text.strip()


def _value(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
