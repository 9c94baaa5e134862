"""What the front itself refuses, in the shape in which SGLang reports errors."""

from __future__ import annotations

from typing import Any, Final

import orjson
from aiohttp import web

_KINDS: Final = {401: "AuthenticationError", 404: "NotFoundError", 503: "ServiceUnavailableError"}


class RefusedError(Exception):
    """A request answered with `status` and a message instead of being served; `param` is the offending field."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


def error_object(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """SGLang's error object."""
    kind = _KINDS.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    return {"object": "error", "message": message, "type": kind, "param": param, "code": status}


def refusal(path: str, refused: RefusedError) -> web.Response:
    """The answer to a refused request, as the API behind `path` reports its own errors."""
    told: dict[str, Any] = error_object(refused.status, str(refused), refused.param)
    if path == "/v1/messages":
        kind = {404: "not_found_error", 401: "authentication_error"}.get(refused.status, "invalid_request_error")
        kind = "overloaded_error" if refused.status >= 500 else kind
        told = {"type": "error", "error": {"type": kind, "message": str(refused)}}
    elif path == "/generate":
        told = {"error": {"message": str(refused)}}
    return web.Response(status=refused.status, body=orjson.dumps(told), content_type="application/json")
