"""The HTTP door: every generation request passes here on its way to stock SGLang, and its answer on the way back.

An ASGI middleware reads the body once to learn whose turn this is, then hands the very same bytes on; only compression,
where it is on, puts another body in their place. Bytes of the answer are copied as they leave and understood only after
the last one went out, so no token waits for us.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentinfer import __version__
from agentinfer.clock import Clock, SystemClock
from agentinfer.config import AgentInferConfig
from agentinfer.errors import ConfigError, HintError
from agentinfer.messages import shortened
from agentinfer.metrics import Metrics
from agentinfer.record import RecordWriter
from agentinfer.runtime.exchange import App, Exchange, Receive, Scope, Send
from agentinfer.runtime.follower import EngineFacts, TurnFollower
from agentinfer.runtime.refusals import RefusedRequest, check_model, read_object, send_refusal
from agentinfer.runtime.scheduling.channel import SchedulerChannel, connect
from agentinfer.runtime.seams import Seam
from agentinfer.runtime.turns import FollowedTurn, current_turn
from agentinfer.sessions import SessionTable

if TYPE_CHECKING:
    from agentinfer.compress.store import CompositionStore
    from agentinfer.radix_ext.latency_file import LatencyFile
    from agentinfer.runtime.compression.service import CompressionService

logger = logging.getLogger(__name__)

FOLLOWED_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/generate"))
SEAMS = (
    Seam(
        target="sglang.srt.runtime_context.get_schedule",
        parameters=(),
        caller=None,
        reason="the prefix cache's page size, for the prefix doctor",
        feature="sessions",
        door="call",
        processes=("launcher",),
    ),
    Seam(
        target="sglang.srt.arg_groups.fields.schedule.Schedule.page_size",
        parameters=None,
        caller=None,
        reason="the prefix cache's page size, for the prefix doctor",
        feature="sessions",
        door="read",
        processes=("launcher",),
    ),
)


class FollowTurns:
    """ASGI middleware around SGLang's app; see the module's docstring.

    `start` builds the follower when the server starts up: only then are the engine's facts known and the folder of
    multi-process metrics set. Requests pass unseen until `is_open()`: the server's own warm-up is nobody's turn.
    """

    def __init__(
        self,
        app: App,
        start: Callable[[], TurnFollower],
        is_open: Callable[[], bool],
        served_models: tuple[str, ...] | None,
    ) -> None:
        """`served_models` are the names a request may ask for; None lets any pass, as stock SGLang does."""
        self._app = app
        self._served_models = served_models
        self._start = start
        self._is_open = is_open
        self._follower: TurnFollower | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "http" and self._concerns_us(scope):
            assert self._follower is not None, "a request before the server started up"
            await self._follow(self._follower, scope, Exchange(receive, send))
        else:
            await self._app(scope, receive, send)

    def _concerns_us(self, scope: Scope) -> bool:
        return scope["method"] == "POST" and scope["path"] in FOLLOWED_PATHS and self._is_open()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._follower = self._start()
        if self._follower.compression is not None:
            self._follower.compression.serve_through(self._app)
        tasks = [asyncio.create_task(each) for each in self._follower.background()]
        try:
            await self._app(scope, receive, send)
        finally:
            for task in tasks:
                task.cancel()
            self._follower.close()

    async def _follow(self, follower: TurnFollower, scope: Scope, exchange: Exchange) -> None:
        await exchange.read_body()
        try:
            body = self._checked_body(scope, exchange.body)
            followed = None if body is None else self._begin(follower, scope, body)
        except RefusedRequest as refused:
            await send_refusal(scope["path"], refused, exchange.send)
            return
        if body is None or followed is None:
            await self._app(scope, exchange.receive, exchange.send)
            return

        def finish() -> None:
            follower.finish(followed, exchange.outcome, exchange.content_type, bytes(exchange.answer))

        exchange.on_complete = finish
        exchange.shorten = functools.partial(shortened, followed.conversation.api)
        scope = _composed(follower, followed, scope, body, exchange)
        token = current_turn.set(followed)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            current_turn.reset(token)
            if not exchange.is_complete:
                finish()

    def _checked_body(self, scope: Scope, raw: bytes) -> dict[str, Any] | None:
        if _headers(scope).get("content-encoding", "identity") != "identity":
            return None  # SGLang decodes no request: it refuses this one
        body = read_object(raw)
        if body is not None and self._served_models is not None:
            check_model(body.get("model"), self._served_models)
        return body

    def _begin(self, follower: TurnFollower, scope: Scope, body: dict[str, Any]) -> FollowedTurn | None:
        try:
            return follower.begin(scope["path"], body, _headers(scope))
        except HintError as error:
            raise RefusedRequest(400, str(error), error.field) from None


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _composed(
    follower: TurnFollower, followed: FollowedTurn, scope: Scope, body: dict[str, Any], exchange: Exchange
) -> Scope:
    """Puts the session's shortened context into the exchange, where there is one; the scope that goes with it.

    Whatever is wrong here is ours alone: the engine then gets the client's own bytes.
    """
    if follower.compression is None:
        return scope
    try:
        composed = follower.compression.body_for(followed, scope, body)
        if composed is None:
            return scope
        exchange.replace_body(composed)
    except Exception:
        logger.exception("agentinfer: a turn of session %s goes on with its client's own words", followed.session_id)
        followed.composition = followed.saved_tokens = None
        return scope
    headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*headers, (b"content-length", str(len(composed)).encode())]}


def install(app: Any, config: AgentInferConfig, model: str, aliases: tuple[str, ...] = ()) -> Callable[[], None]:
    """Put the middleware around SGLang's FastAPI `app` and add our routes; must run before the server starts.

    `model` is the served model's name, `aliases` are further ones a request may ask for. Returns what to call when the
    server is warm: turns are followed from then on. Raises ConfigError or TraceError when the record file cannot be
    continued.
    """
    from agentinfer.runtime.ranking import ranking_routes
    from agentinfer.runtime.routes import session_routes

    clock = SystemClock()
    recorder = None if config.record.record is None else _open_record(Path(config.record.record), model, clock)
    latency_file = _open_latency_file(config, clock)
    compositions = _open_compositions(config)
    followers: list[TurnFollower] = []
    is_warm = threading.Event()

    def start() -> TurnFollower:
        followers[:] = [_follower(config, model, clock, recorder, latency_file, compositions)]
        return followers[0]

    served = (model, *aliases) if config.sessions.check_model else None
    app.add_middleware(FollowTurns, start=start, is_open=is_warm.is_set, served_models=served)
    if config.compress.enabled:
        from agentinfer.runtime.compression.routes import memory_routes

        app.include_router(memory_routes(lambda: _compression_of(followers[0])))
    app.include_router(session_routes(lambda: followers[0]))
    app.include_router(ranking_routes())
    return is_warm.set


def _follower(
    config: AgentInferConfig,
    model: str,
    clock: Clock,
    recorder: RecordWriter | None,
    latency_file: LatencyFile | None,
    compositions: CompositionStore | None,
) -> TurnFollower:
    from sglang.srt.runtime_context import get_device, get_schedule

    settings = config.sessions
    channel = connect(clock, config.scheduling) if config.scheduling.enabled else None
    follower = TurnFollower(
        table=SessionTable(
            max_sessions=settings.max_sessions,
            expiry_s=settings.session_expiry_s,
            clock=clock,
            ids=lambda: f"s-{uuid.uuid4().hex[:16]}",
            max_bytes=settings.session_text_mb << 20,
            on_gone=lambda session_id: follower.session_gone(session_id),
        ),
        clock=clock,
        metrics=Metrics(),
        engine=EngineFacts(model=model, device=str(get_device().device), page_size=get_schedule().page_size or 1),
        about={
            "version": __version__,
            "sglang": metadata.version("sglang"),
            "features": list(config.enabled_features),
        },
        recorder=recorder,
        channel=channel,
        latency_file=latency_file,
        compression=_compression(config, compositions, clock, channel),
    )
    return follower


def _open_compositions(config: AgentInferConfig) -> CompositionStore | None:
    if not config.compress.enabled:
        return None
    from agentinfer.runtime.compression.registration import open_store

    return open_store(config.compress)


def _compression(
    config: AgentInferConfig, compositions: CompositionStore | None, clock: Clock, channel: SchedulerChannel | None
) -> CompressionService | None:
    if compositions is None:
        return None
    from agentinfer.runtime.compression.registration import make_service

    return make_service(config.compress, compositions, clock, channel)


def _compression_of(follower: TurnFollower) -> CompressionService:
    assert follower.compression is not None, "the memory routes are there with compression only"
    return follower.compression


def _open_latency_file(config: AgentInferConfig, clock: Clock) -> LatencyFile | None:
    kept_in = config.scheduling.sched_latency_file
    if not config.scheduling.enabled or kept_in is None:
        return None
    from agentinfer.radix_ext.latency_file import LatencyFile

    return LatencyFile(Path(kept_in), clock)


def _open_record(path: Path, model: str, clock: Clock) -> RecordWriter:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return RecordWriter(path, model, clock.unix_s())
    except OSError as error:
        raise ConfigError(f"--agentinfer-record {path}: {error}; name a file in a folder you can write to") from None
