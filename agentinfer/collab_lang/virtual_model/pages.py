"""What the front tells of itself: models, health, metrics, sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.virtual_model.engine import Engine, EngineLost
from agentinfer.collab_lang.virtual_model.exposition import merged
from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings
from agentinfer.collab_lang.virtual_model.refusals import RefusedError
from agentinfer.collab_lang.virtual_model.turns import Turns
from agentinfer.metrics import CollabMetrics

_ENGINE_S: Final = 10.0
_MAX_LISTED: Final = 100


class Pages:
    """GET routes that the front answers itself."""

    def __init__(
        self, turns: Turns, settings: FrontSettings, metrics: CollabMetrics, registry: CollectorRegistry
    ) -> None:
        self._turns = turns
        self._engines: Mapping[Model, Engine] = turns.engines
        self._settings = settings
        self._metrics = metrics
        self._registry = registry

    async def models(self, request: web.Request) -> web.Response:
        """The virtual model, whose window is the shorter of the two, then what the engines that are up list."""
        del request
        name = self._settings.name
        own: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "agentinfer"}
        rows: dict[str, dict[str, Any]] = {name: own}
        for engine, told in zip(self._engines.values(), await self._all("/v1/models"), strict=True):
            found = _object(told).get("data")
            listed = [row for row in found if isinstance(row, dict) and "id" in row] if isinstance(found, list) else []
            for row in listed or [{**own, "id": engine.address.model, "owned_by": engine.role.value}]:
                rows.setdefault(str(row["id"]), row)
        windows = [row["max_model_len"] for row in rows.values() if isinstance(row.get("max_model_len"), int)]
        if windows:
            own["max_model_len"] = min(windows)
        return _json({"object": "list", "data": list(rows.values())})

    async def health(self, request: web.Request) -> web.Response:
        """200 while a turn can be served."""
        del request
        up = {model.value: engine.is_up for model, engine in self._engines.items()}
        status = "ok" if all(up.values()) else "one engine is down" if any(up.values()) else "both engines are down"
        engines = {name: "up" if is_up else "down" for name, is_up in up.items()}
        return _json({"status": status, "engines": engines}, 200 if any(up.values()) else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """Both engines' metrics, and the front's own."""
        del request
        for model, engine in self._engines.items():
            self._metrics.engine_up(model, engine.is_up)
        told = zip(self._engines, await self._all("/metrics"), strict=True)
        texts = {model.value: raw.decode(errors="replace") for model, raw in told if raw is not None}
        text = merged(texts, "engine") + generate_latest(self._registry).decode()
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def status(self, request: web.Request) -> web.Response:
        """The front's figures, and what each engine that is ours says of itself."""
        del request
        engines = {}
        for engine, told in zip(self._engines.values(), await self._all("/agentinfer/status"), strict=True):
            engines[engine.role.value] = {**engine.status(), "agentinfer": _object(told) or None}
        table, hand_overs = self._turns.table, self._turns.hand_overs
        share = hand_overs.prefilled_share
        return _json(
            {
                "model": self._settings.name,
                "engines": engines,
                "sessions": {**table.counts(), **table.totals, "size_bytes": table.size_bytes},
                "collab": {
                    "sessions": len(self._turns.sessions),
                    "check": self._settings.collab.check.value,
                    "threshold": self._settings.collab.threshold,
                    "reads_ahead": self._settings.reads_ahead,
                    "escalation_per_step": round(self._turns.escalations.per_step, 4),
                    "switches": hand_overs.switches,
                    "switch_unseen_tokens": hand_overs.unseen_tokens,
                    "switch_computed_tokens": hand_overs.computed_tokens,
                    "switch_prefilled_share": None if share is None else round(share, 4),
                },
            }
        )

    async def sessions(self, request: web.Request) -> web.Response:
        """The sessions, most recently active first."""
        del request
        views = self._turns.table.list()
        return _json({"total": len(views), "sessions": [view.as_dict() for view in views[:_MAX_LISTED]]})

    async def session(self, request: web.Request) -> web.Response:
        """One session's view, with its place in the state machine. Raises RefusedError (404)."""
        session_id = request.match_info["session_id"]
        view, collab = self._turns.table.get(session_id), self._turns.sessions.get(session_id)
        if view is None:
            raise RefusedError(404, f"no session {session_id!r}: never seen, expired, or gave way to newer ones")
        return _json({**view.as_dict(), "collab": None if collab is None else collab.as_json()})

    async def transitions(self, request: web.Request) -> web.Response:
        """One session's transitions with their reasons. Raises RefusedError (404)."""
        session_id = request.match_info["session_id"]
        session = self._turns.sessions.get(session_id)
        if session is None:
            raise RefusedError(404, f"no session {session_id!r} under way: never seen, finished, or expired")
        return _json(session.as_json())

    async def close_session(self, request: web.Request) -> web.Response:
        """No further turn of the session comes. Raises RefusedError (404)."""
        session_id = request.match_info["session_id"]
        if not self._turns.table.close(session_id):
            raise RefusedError(404, f"no session {session_id!r}: never seen, expired, or gave way to newer ones")
        return _json({"id": session_id, "state": "finished"})

    async def flush(self, request: web.Request) -> web.Response:
        """Empties both engines' caches. Raises RefusedError (400) where one would not, as while it has requests."""
        told = await self._all(request.path_qs, request.method)
        refusing = [model.value for model, raw in zip(self._engines, told, strict=True) if raw is None]
        if refusing:
            raise RefusedError(400, f"not flushed: {' and '.join(refusing)}, which is down or has requests")
        for session in self._turns.sessions:
            session.forget_read()
        return web.Response(text="Both caches flushed.\n")

    async def _all(self, path: str, method: str = "GET") -> list[bytes | None]:
        return await asyncio.gather(*(_got(engine, path, method) for engine in self._engines.values()))


async def _got(engine: Engine, path: str, method: str) -> bytes | None:
    """What the engine answers; None where it is down or does not do it."""
    if not engine.is_up:
        return None
    try:
        async with engine.open(method, path, timeout_s=_ENGINE_S) as answer:
            raw = await answer.read()
            return raw if answer.status == 200 else None
    except (EngineLost, TimeoutError):
        return None


def _object(raw: bytes | None) -> dict[str, Any]:
    try:
        found = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body, default=str), content_type="application/json")
