"""Playing a workload on one server: the closed loop of sessions and, where asked for, a stream of questions."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from agentinfer.clock import Clock, SystemClock
from agentinfer.replay import server_side
from agentinfer.replay.client import ChatClient, Exchange, get_json
from agentinfer.replay.driver import LoopOptions, Replay, SessionResult, TurnResult, is_as_recorded
from agentinfer.replay.render import RequestOptions, request_body
from agentinfer.replay.session import Session

TURN_TIMEOUT_S = 600.0
_STATUS_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Stream:
    """`questions` come `per_s` a second on average, at random but alike in every run of a seed, while sessions run."""

    questions: Iterable[Session]
    per_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Played:
    """`scheduling`: what AgentSched told of itself, from time to time; empty on a stock server."""

    sessions: list[SessionResult]
    questions: list[SessionResult]
    scheduling: list[dict[str, Any]]


class NamedSessions:
    """Names the session in SGLang's own field too, and closes it after its last turn, for its session radix cache."""

    def __init__(self, client: ChatClient, http: aiohttp.ClientSession, url: str) -> None:
        self._client = client
        self._http = http
        self._url = url + "/close_session"

    async def send(self, body: dict[str, Any]) -> Exchange:
        session = body["agentinfer"]["session"]
        exchange = await self._client.send({**body, "session_id": session})
        if body["agentinfer"]["last"] or exchange.error:
            async with self._http.post(self._url, json={"session_id": session}) as response:
                response.raise_for_status()
        return exchange


async def play(
    url: str,
    model: str,
    sessions: Sequence[Session],
    loop: LoopOptions,
    *,
    names_sessions: bool = False,
    stream: Stream | None = None,
) -> Played:
    """All `sessions` with forced replies, from an empty prefix cache.

    `names_sessions`: SGLang is told of sessions as well. A failed turn is in the results, nothing is raised for it.
    """
    clock = SystemClock()
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)
    async with aiohttp.ClientSession(connector=connector) as http:
        await server_side.flush_cache(http, url)
        client = ChatClient(http, url, clock, TURN_TIMEOUT_S)
        sender = NamedSessions(client, http, url) if names_sessions else client
        request = RequestOptions(model, forced=True, send_hints=True, max_tokens=0, temperature=0.0)
        replay = Replay(sender, request, loop, clock, uuid.uuid4().hex[:8])
        asked: list[SessionResult] = []
        told: list[dict[str, Any]] = []
        async with asyncio.TaskGroup() as beside:
            tasks = [beside.create_task(_watch(http, url, told))]
            if stream is not None:
                tasks.append(beside.create_task(_ask(sender, request, stream, clock, asked)))
            played = await replay.run(sessions)
            for task in tasks:
                task.cancel()
    return Played(played, asked, told)


async def _ask(sender: Any, request: RequestOptions, stream: Stream, clock: Clock, asked: list[SessionResult]) -> None:
    """Until cancelled; questions under way are then still answered."""
    rng = random.Random(f"arrivals {stream.seed}")
    began_s = clock.monotonic_s()
    run_id = uuid.uuid4().hex[:8]

    async def one(question: Session) -> None:
        result = SessionResult(question, f"{question.id}@{run_id}", False, clock.monotonic_s() - began_s)
        asked.append(result)
        turn = question.turns[0]
        exchange = await sender.send(request_body(question, turn, result.wire_id, request))
        as_recorded = None if exchange.error else is_as_recorded(turn, exchange)
        result.turns.append(TurnResult(0, result.started_s, exchange, is_as_recorded=as_recorded))
        result.is_complete = not exchange.error
        result.ended_s = clock.monotonic_s() - began_s

    async with asyncio.TaskGroup() as under_way:
        with contextlib.suppress(asyncio.CancelledError):
            for question in stream.questions:
                await asyncio.sleep(rng.expovariate(stream.per_s))
                under_way.create_task(one(question))


async def _watch(http: aiohttp.ClientSession, url: str, told: list[dict[str, Any]]) -> None:
    while True:
        await asyncio.sleep(_STATUS_EVERY_S)
        status = await get_json(http, url + "/agentinfer/status")
        figures = None if status is None else status.get("scheduling")
        if figures is None:
            return
        told.append(figures)
