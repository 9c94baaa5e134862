"""A whole replay: choose the sessions, fit them, warm up, drive, collect what the server knows, sum up."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TextIO

import aiohttp

from agentinfer.clock import Clock, SystemClock
from agentinfer.errors import TraceError
from agentinfer.replay import measure, provenance, server_side
from agentinfer.replay.client import ChatClient
from agentinfer.replay.driver import LoopOptions, Replay, SessionResult
from agentinfer.replay.progress import Progress
from agentinfer.replay.render import RequestOptions, inline_reasoning
from agentinfer.replay.session import Session
from agentinfer.replay.tokens import TokenCounter
from agentinfer.replay.traces import Trace
from agentinfer.replay.truncate import Fitted, Limits, fit


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything that shapes a replay. `sessions` None: all that the trace holds after the warm-up ones.

    `timeout_s` bounds one turn. `context_tokens` in `limits` None: the server's own window.
    """

    url: str
    model: str | None = None
    sessions: int | None = None
    warmup: int = 0
    forced: bool = False
    send_hints: bool = True
    shuffle: bool = False
    flush_cache: bool = False
    inline_reasoning: bool = False
    timeout_s: float = 600.0
    max_tokens: int = 1024
    temperature: float = 0.0
    limits: Limits = field(default_factory=Limits)
    loop: LoopOptions = field(default_factory=LoopOptions)


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """What came of a replay: `result` as written to JSON, `sessions` as measured, warm-up first."""

    result: dict[str, Any]
    sessions: list[SessionResult]


async def replay(
    trace: Trace,
    options: RunOptions,
    command: Sequence[str] = (),
    progress_to: TextIO | None = None,
    clock: Clock | None = None,
) -> ReplayRun:
    """Drive the server at `options.url` with the trace.

    Raises TraceError when the trace has too few sessions or one cannot fit, AgentInferError when no server answers.
    What goes wrong in a turn is counted in the result instead.
    """
    clock = clock or SystemClock()
    chosen = choose(trace, options)
    # No limit of our own on connections: it would be an invisible queue in front of the server's. Idle ones are let go
    # before uvicorn drops them (5 s), or a turn after a long tool would now and then be sent into a closed one.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)
    async with aiohttp.ClientSession(connector=connector) as http:
        server = await server_side.inspect(http, options.url, options.model)
        source = provenance.describe(trace, server, options.loop.seed, command, clock)
        counter = TokenCounter(http, options.url, server.model)
        limits = options.limits
        if limits.context_tokens is None:
            limits = replace(limits, context_tokens=server.context_tokens)
        reply_tokens = None if options.forced else options.max_tokens
        fitted = [await fit(session, limits, counter, reply_tokens) for session in chosen]
        sessions = [f.session for f in fitted]
        if options.flush_cache:
            await server_side.flush_cache(http, options.url)
        driver, progress = _driver(http, server.model, options, sessions, progress_to, clock)
        results = await driver.run(sessions[: options.warmup], is_warmup=True)
        results += await driver.run(sessions[options.warmup :])
        if progress:
            progress.finish()
        await server_side.collect_turns(http, options.url, results)
    result = {
        "format": measure.RESULT_FORMAT,
        "version": measure.RESULT_VERSION,
        **measure.summarise(results, server.has_cache_report),
        "fitting": _fitting(fitted, limits, counter),
        "options": asdict(options),
        "provenance": source,
    }
    return ReplayRun(result, results)


def choose(trace: Trace, options: RunOptions) -> list[Session]:
    """The sessions to play, warm-up first: the trace's order, or one that the seed fixes."""
    sessions = list(trace.sessions)
    if options.shuffle:
        random.Random(options.loop.seed).shuffle(sessions)
    wanted = len(sessions) if options.sessions is None else options.warmup + options.sessions
    if wanted > len(sessions) or options.warmup >= len(sessions):
        # Playing one twice would serve the second from the first one's cache, and look like a gain.
        raise TraceError(
            f"{trace.name}: holds {len(sessions)} sessions, asked for {options.sessions or 'all'} after "
            f"{options.warmup} to warm up; ask for fewer"
        )
    sessions = sessions[:wanted]
    return [inline_reasoning(s) for s in sessions] if options.inline_reasoning else sessions


def _driver(
    http: aiohttp.ClientSession,
    model: str,
    options: RunOptions,
    sessions: Sequence[Session],
    progress_to: TextIO | None,
    clock: Clock,
) -> tuple[Replay, Progress | None]:
    progress = None
    if progress_to is not None:
        progress = Progress(progress_to, clock, len(sessions), sum(len(s.turns) for s in sessions))
    request = RequestOptions(
        model=model,
        forced=options.forced,
        send_hints=options.send_hints,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
    )
    client = ChatClient(http, options.url, clock, options.timeout_s)
    run_id = uuid.uuid4().hex[:8]
    return Replay(client, request, options.loop, clock, run_id, progress, asyncio.sleep), progress


def _fitting(fitted: Sequence[Fitted], limits: Limits, counter: TokenCounter) -> dict[str, Any]:
    return {
        "context_tokens": limits.context_tokens,
        "sessions_cut": sum(f.dropped_turns > 0 for f in fitted),
        "turns_dropped": sum(f.dropped_turns for f in fitted),
        "messages_clipped": sum(f.clipped_messages for f in fitted),
        "token_counts": "the server's tokenizer" if counter.is_exact else "estimated from characters",
    }
