"""Requests that are for one engine: handed on as they are, the answer's bytes as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from agentinfer.collab_lang.virtual_model.engine import Answer, Engine, EngineLost
from agentinfer.collab_lang.virtual_model.refusals import RefusedError

# Of one connection, not of the message (RFC 9110, 7.6.1); and what is set anew on each way.
_NOT_PASSED: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "accept-encoding",
        "content-encoding",
        "expect",
    )
)


async def hand_on(request: web.Request, engine: Engine, body: bytes | None) -> web.StreamResponse:
    """Asks `engine` what `request` asks, with `body`, and answers what it answers. Raises RefusedError (503)."""
    passed = request_headers(request, engine)
    response: web.StreamResponse | None = None
    try:
        async with engine.open(
            request.method, request.path_qs, body, passed, is_turn=request.method == "POST"
        ) as answer:
            response = web.StreamResponse(status=answer.status, headers=answer_headers(answer))
            await response.prepare(request)
            async for piece in answer.pieces():
                await response.write(piece)
            await response.write_eof()
            return response
    except EngineLost as lost:
        engine.doubt(str(lost))
        if response is not None:
            raise ConnectionResetError("the engine was lost in the middle of its answer") from lost
        raise RefusedError(503, f"the {engine.role} model's engine does not answer: {lost}") from lost


def request_headers(request: web.Request, engine: Engine) -> dict[str, str]:
    """The client's headers as they go to `engine`, whose own key, where it has one, stands in for the client's."""
    left_out = _NOT_PASSED if engine.address.api_key is None else _NOT_PASSED | {"authorization"}
    return {name: value for name, value in request.headers.items() if name.lower() not in left_out}


def turn_headers(request: web.Request, engine: Engine, routing: Mapping[str, str]) -> dict[str, str]:
    """`request_headers`, with what has all of a session's requests go to the same replica."""
    passed = request_headers(request, engine)
    return {name: value for name, value in passed.items() if name.lower() not in routing} | dict(routing)


def answer_headers(answer: Answer) -> dict[str, str]:
    """The answer's headers that go on to the client."""
    return {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED}
