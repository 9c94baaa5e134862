"""Reading a request to the virtual model: its body, who is to speak, whose session it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import orjson
from aiohttp import web

from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.virtual_model.engine import Engine
from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings
from agentinfer.collab_lang.virtual_model.refusals import RefusedError
from agentinfer.errors import HintError
from agentinfer.hints import AgentHints, parse_hints

PIN_HEADER: Final = "x-agentinfer-collab"
# Of sglang-router, whose replicas a session must not change: its KV is on one of them.
_ROUTING_KEY: Final = "x-smg-routing-key"
_MAX_KEY: Final = 256
_ROUTING_HEADERS: Final[tuple[str, ...]] = (_ROUTING_KEY, "x-data-parallel-rank")
_PIN_FIELD: Final = "agentinfer.collab"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request's body, of which the engine gets all but our own fields. `pinned`: the model that is to speak now.

    `routing`: the headers by which the client has its requests routed among replicas.
    """

    body: dict[str, Any] = field(repr=False)
    size_bytes: int
    hints: AgentHints
    pinned: Model | None
    routing: dict[str, str]


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. Raises RefusedError (400)."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"the request body is not JSON: {error}") from None
    if not isinstance(body, dict):
        kind = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(body), "a number")
        raise RefusedError(400, f"the request body must be a JSON object, got {kind}")
    return body


def engine_named(body: Mapping[str, Any], engines: Mapping[Model, Engine], settings: FrontSettings) -> Engine | None:
    """The engine whose own name the request gives; None for the virtual model. Raises RefusedError (404).

    No name, an empty one and ``default`` mean the virtual model. An adapter may follow an engine's name and a colon.
    """
    name = body.get("model")
    if not isinstance(name, str) or name in ("", "default", settings.name):
        return None
    found = engine_of(name, engines)
    if found is None and settings.checks_model_name:
        served = ", ".join(dict.fromkeys((settings.name, *(each.address.model for each in engines.values()))))
        raise RefusedError(404, f"model {name!r} is not served here; this server has {served}", "model")
    return found


def engine_of(name: object, engines: Mapping[Model, Engine]) -> Engine | None:
    """The engine of that name, or of that name and an adapter's."""
    for engine in engines.values():
        own = engine.address.model
        if name == own or (isinstance(name, str) and name.startswith(f"{own}:")):
            return engine
    return None


def read_turn(request: web.Request, body: dict[str, Any], size_bytes: int) -> Incoming:
    """Raises RefusedError (400) for a malformed hint or pin."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    own = body.get("agentinfer")
    pinned = _pinned(headers.get(PIN_HEADER), PIN_HEADER)
    if isinstance(own, dict) and "collab" in own:
        wish = own["collab"]
        if not isinstance(wish, dict) or set(wish) - {"model"}:
            raise RefusedError(400, f'{_PIN_FIELD}: expected an object with "model", got {wish!r}', _PIN_FIELD)
        pinned = _pinned(wish.get("model"), f"{_PIN_FIELD}.model") or pinned
        own = {name: value for name, value in own.items() if name != "collab"}
    try:
        hints = parse_hints({**body, "agentinfer": own}, headers)
    except HintError as error:
        raise RefusedError(400, str(error), error.field) from None
    routing = {name: headers[name] for name in _ROUTING_HEADERS if name in headers}
    return Incoming(body, size_bytes, hints, pinned, routing)


def routing_by(session_id: str) -> dict[str, str]:
    """What keeps a session on one replica where its client says nothing of that. An id may be no header's value."""
    return {_ROUTING_KEY: quote(session_id, errors="replace")[:_MAX_KEY]}


def _pinned(value: object, field_name: str) -> Model | None:
    if value is None:
        return None
    if value not in tuple(Model):
        names = " or ".join(Model)
        raise RefusedError(400, f"{field_name}: expected {names}, got {value!r}", field_name)
    return Model(str(value))
