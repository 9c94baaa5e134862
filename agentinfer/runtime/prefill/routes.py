"""`/agentinfer/prefill`: a prompt's KV computed ahead on request, and given up again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from agentinfer.runtime.prefill.service import PrefillService
from agentinfer.runtime.prefill.wish import read_wish
from agentinfer.runtime.refusals import RefusedRequest, check_model, refusal_body

_PATH = "/agentinfer/prefill"


def prefill_routes(service: Callable[[], PrefillService], served_models: Collection[str] | None) -> APIRouter:
    """The routes over the service; `served_models` are the names a request may ask for, None lets any pass."""
    router = APIRouter(prefix="/agentinfer", tags=["agentinfer"])

    @router.post("/prefill")
    async def prefill(request: Request) -> Response:
        """Compute what prompts that go on from these messages have in common, in pieces between the turns."""
        try:
            wish = read_wish(await request.body(), dict(request.headers))
            if served_models is not None:
                check_model(wish.body.get("model"), served_models)
            job = service().begin(wish, request.scope)
            gone = asyncio.create_task(_client_gone(request))
            try:
                await asyncio.wait((job.task, gone), return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    job.stop("client_gone")
                return JSONResponse(asdict(await job.task))
            finally:
                gone.cancel()
        except RefusedRequest as refused:
            headers = {"retry-after": "1"} if refused.status == 503 else None
            return JSONResponse(refusal_body(_PATH, refused), refused.status, headers)

    @router.delete("/prefill/{session_id:path}")
    async def forget(session_id: str) -> dict[str, Any]:
        """What was computed ahead for the session is not needed any more; what is being computed is stopped."""
        if not service().forget(session_id):
            raise HTTPException(404, f"nothing was computed ahead for session {session_id!r}, or it is long ago")
        return {"session": session_id, "state": "forgotten"}

    return router


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
