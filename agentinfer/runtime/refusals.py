"""What we refuse before the engine sees it, each in the shape of the API that was called."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import orjson

from agentinfer.runtime.exchange import Send

_KINDS: Final = {404: "NotFoundError", 503: "ServiceUnavailableError"}


class RefusedRequest(Exception):
    """A request answered with `status` (HTTP) and a message instead of being served; `param` is the offending field."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


def read_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in `raw`; None for what is no JSON, which SGLang answers itself.

    Raises RefusedRequest for JSON that is no object: SGLang's chat route would end in a bare HTTP 500.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict):
        kind = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(body), "a number")
        raise RefusedRequest(400, f"the request body must be a JSON object, got {kind}")
    return body


def check_model(model: object, served: Collection[str]) -> None:
    """Raises RefusedRequest (404) when a request names a model other than the `served` ones.

    No name, an empty one and ``default`` mean the served model. A LoRA adapter after a colon is SGLang's to check.
    """
    if not isinstance(model, str) or model in ("", "default") or model in served:
        return
    if model.rpartition(":")[0] in served:
        return
    raise RefusedRequest(
        404,
        f"model {model!r} is not served here; this server has {', '.join(served)}. To let any name pass, start it with "
        "--no-agentinfer-check-model",
        "model",
    )


async def send_refusal(path: str, refused: RefusedRequest, send: Send) -> None:
    """Answer `refused` as the API behind `path` reports its own errors."""
    raw = orjson.dumps(refusal_body(path, refused))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def refusal_body(path: str, refused: RefusedRequest) -> dict[str, Any]:
    """The JSON that the API behind `path` answers with."""
    message = str(refused)
    if path == "/v1/messages":
        kind = "not_found_error" if refused.status == 404 else "invalid_request_error"
        return {"type": "error", "error": {"type": kind, "message": message}}
    if path == "/generate":
        return {"error": {"message": message}}
    kind = _KINDS.get(refused.status, "InternalServerError" if refused.status >= 500 else "BadRequestError")
    return {"object": "error", "message": message, "type": kind, "param": refused.param, "code": refused.status}
