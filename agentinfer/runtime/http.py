"""The HTTP door: every generation request passes here on its way to stock SGLang, and its answer on the way back.

An ASGI middleware reads the body once to learn whose turn this is, then hands the very same bytes on; only compression,
where it is on, puts another body in their place. Bytes of the answer are copied as they leave and understood only after
the last one went out, so no token waits for us.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from agentinfer.errors import HintError
from agentinfer.messages import shortened
from agentinfer.runtime.exchange import App, Exchange, Receive, Scope, Send
from agentinfer.runtime.follower import TurnFollower
from agentinfer.runtime.refusals import RefusedRequest, check_model, read_object, send_refusal
from agentinfer.runtime.turns import FollowedTurn, current_turn

logger = logging.getLogger(__name__)

FOLLOWED_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/generate"))


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
        refuse: Callable[[Exception], None],
    ) -> None:
        """`served_models` are the names a request may ask for; None lets any pass, as stock SGLang does. `refuse` is
        told of what `start` raises: the server then ends before its first request."""
        self._app = app
        self._served_models = served_models
        self._start = start
        self._is_open = is_open
        self._refuse = refuse
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
        try:
            self._follower = self._start()
        except Exception as error:
            # Raised from here, it would count as an app that has no start-up, and the server would serve without us.
            self._refuse(error)
            await receive()
            await send({"type": "lifespan.startup.failed"})
            return
        if self._follower.compression is not None:
            self._follower.compression.serve_through(self._app)
        if self._follower.prefill is not None:
            self._follower.prefill.serve_through(self._app)
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
            app = self._app if followed.answering is None else followed.answering(self._app)
            await app(scope, exchange.receive, exchange.send)
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
        followed.composition = followed.saved_tokens = followed.answering = None
        return scope
    headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*headers, (b"content-length", str(len(composed)).encode())]}
