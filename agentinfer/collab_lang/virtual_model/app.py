"""The front before the two engines: model `collab` on the chat API, everything else handed on to an engine."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry

from agentinfer.clock import Clock, SystemClock
from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.virtual_model.addresses import EngineAddresses
from agentinfer.collab_lang.virtual_model.chat import CHAT_PATH, ChatDoor
from agentinfer.collab_lang.virtual_model.engine import Engine
from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings
from agentinfer.collab_lang.virtual_model.health import HealthWatch
from agentinfer.collab_lang.virtual_model.incoming import engine_named, engine_of, read_object, read_turn, routing_by
from agentinfer.collab_lang.virtual_model.other_apis import OTHER_APIS, OtherDoor
from agentinfer.collab_lang.virtual_model.pages import Pages
from agentinfer.collab_lang.virtual_model.proxy import hand_on
from agentinfer.collab_lang.virtual_model.refusals import RefusedError, refusal
from agentinfer.collab_lang.virtual_model.turns import Turns
from agentinfer.collab_lang.virtual_model.watching import ClientGone, while_connected
from agentinfer.messages import Conversation
from agentinfer.metrics import CollabMetrics

logger = logging.getLogger(__name__)

# Prompts of a million tokens, images among them.
_MAX_BODY_BYTES: Final = 1 << 30
_HOUSEKEEPING_S: Final = 5.0
_FREE_OF_KEY: Final = ("/health", "/health_generate", "/metrics", "/ready")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TURNS: Final = web.AppKey("turns", Turns)
"""The app's own state, for tests and for whoever embeds it."""


def create_app(
    engines: EngineAddresses,
    settings: FrontSettings | None = None,
    clock: Clock | None = None,
    ids: Callable[[], str] = lambda: uuid4().hex,
) -> web.Application:
    """The front as an aiohttp application, which polls the engines while it runs. They need not be up yet."""
    settings = settings or FrontSettings()
    clock = clock or SystemClock()
    registry = CollectorRegistry()
    metrics = CollabMetrics(registry)
    pair = {model: Engine(engines[model.value], clock) for model in Model}  # type: ignore[index]
    turns = Turns(pair, settings, clock, ids, metrics)
    front = _Front(pair, turns, settings)
    pages = Pages(turns, settings, metrics, registry)
    app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_guard(settings)])
    app[TURNS] = turns
    app.cleanup_ctx.append(front.run)
    app.router.add_get("/v1/models", pages.models)
    app.router.add_get("/health", pages.health)
    app.router.add_get("/metrics", pages.metrics)
    app.router.add_get("/agentinfer/status", pages.status)
    app.router.add_get("/agentinfer/sessions", pages.sessions)
    app.router.add_get("/agentinfer/collab/sessions/{session_id:.+}", pages.transitions)
    app.router.add_get("/agentinfer/sessions/{session_id:.+}", pages.session)
    app.router.add_delete("/agentinfer/sessions/{session_id:.+}", pages.close_session)
    app.router.add_route("*", "/flush_cache", pages.flush)
    app.router.add_post(CHAT_PATH, front.generate)
    for path in OTHER_APIS:
        app.router.add_post(path, front.generate)
    app.router.add_route("*", "/{path:.*}", front.anything)
    return app


class _Front:
    """Whose request it is: the virtual model's or an engine's."""

    def __init__(self, engines: Mapping[Model, Engine], turns: Turns, settings: FrontSettings) -> None:
        self._engines = engines
        self._turns = turns
        self._settings = settings
        self._chat = ChatDoor(turns, settings)
        self._other = OtherDoor(turns)

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """From the app's start to its end."""
        del app
        watches = [HealthWatch(engine, self._settings, self._turns.engine_found) for engine in self._engines.values()]
        for engine in self._engines.values():
            await engine.start()
        await asyncio.gather(*(watch.ask() for watch in watches))
        tasks = [asyncio.create_task(watch.run()) for watch in watches]
        tasks.append(asyncio.create_task(self._keep_house()))
        yield
        for task in tasks:
            task.cancel()
        for watch in watches:
            watch.close()
        self._turns.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        for engine in self._engines.values():
            await engine.close()

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """A turn of the virtual model, or a request to one of the engines by its own name."""
        raw = await request.read()
        body = read_object(raw)
        engine = engine_named(body, self._engines, self._settings)
        if engine is not None:
            return await hand_on(request, engine, raw)
        incoming = read_turn(request, body, len(raw))
        conversation = Conversation.from_body(request.path, body)
        if conversation is None:
            raise RefusedError(400, "messages: expected a list of at least one message", "messages")
        door = self._chat if request.path == CHAT_PATH else self._other
        pinned = incoming.pinned or (None if door is self._chat else self._other.pinned(incoming, conversation))
        turn = self._turns.begin(incoming.hints, conversation, incoming.size_bytes, pinned)
        turn.session.routing = {**routing_by(turn.session.session_id), **incoming.routing}
        if door is self._chat:
            self._turns.read_along(turn, body)
        return await door.answer(request, incoming, turn)

    async def anything(self, request: web.Request) -> web.StreamResponse:
        """Any other route is the engine's that the body names, else the large model's, by whatever name it is asked."""
        raw = await request.read() if request.can_read_body else None
        engine = self._engines[Model.LARGE]
        if raw and request.content_type == "application/json":
            with suppress(RefusedError):
                body = read_object(raw)
                engine = engine_of(body.get("model"), self._engines) or engine
                if body.get("model") == self._settings.name:
                    raw = orjson.dumps({**body, "model": engine.address.model})
        return await hand_on(request, engine, raw)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            self._turns.table.expire()


def _guard(settings: FrontSettings) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Asks for the key, answers refusals in the API's shape, and ends work for a client that left."""
        try:
            _check_key(request, settings.api_key)
            return await while_connected(request, _called(handler, request))
        except RefusedError as refused:
            return refusal(request.path, refused)
        except (ClientGone, ConnectionResetError):
            # The client left, or its answer cannot be brought to an end: either way the connection is over.
            if request.transport is not None:
                request.transport.close()
            return web.Response(status=499)

    return guard


async def _called(handler: _Handler, request: web.Request) -> web.StreamResponse:
    return await handler(request)


def _check_key(request: web.Request, key: str | None) -> None:
    if key is None or request.method == "OPTIONS" or request.path in _FREE_OF_KEY:
        return
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    given = given or request.headers.get("x-api-key", "")
    if not hmac.compare_digest(given.encode(), key.encode()):
        raise RefusedError(401, "the API key is missing or wrong: send it as Authorization: Bearer KEY")
