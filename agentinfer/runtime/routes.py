"""`/agentinfer/*`: what the server knows of its sessions, as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, HTTPException, Query

from agentinfer.runtime.follower import TurnFollower
from agentinfer.sessions import SESSION_STATES, SessionView


def session_routes(follower: Callable[[], TurnFollower]) -> APIRouter:
    """The routes over the follower that serves; none of them changes an answer, only DELETE changes a session."""
    router = APIRouter(prefix="/agentinfer", tags=["agentinfer"])

    @router.get("/status")
    async def status() -> dict[str, Any]:
        """Versions, features, and counts since the start."""
        return follower().status()

    @router.get("/sessions")
    async def sessions(
        state: str | None = Query(None, description=f"only sessions in this state: {', '.join(SESSION_STATES)}"),
        limit: int = Query(100, ge=1, le=10_000, description="most recently active first"),
    ) -> dict[str, Any]:
        """The sessions, most recently active first, without their turns."""
        if state is not None and state not in SESSION_STATES:
            raise HTTPException(422, f"state: expected one of {', '.join(SESSION_STATES)}, got {state!r}")
        views = [view for view in follower().table.list() if state is None or view.state == state]
        return {"total": len(views), "sessions": [_summary(view) for view in views[:limit]]}

    @router.get("/sessions/{session_id:path}")
    async def session(session_id: str) -> dict[str, Any]:
        """One session with its recent turns, each with what the prefix doctor found."""
        view = follower().table.get(session_id)
        if view is None:
            raise HTTPException(404, unknown_session(session_id))
        return view.as_dict()

    @router.delete("/sessions/{session_id:path}")
    async def close(session_id: str) -> dict[str, Any]:
        """Say that no further turn of this session comes, as `agentinfer.last` does in a request."""
        if not follower().table.close(session_id):
            raise HTTPException(404, unknown_session(session_id))
        return {"id": session_id, "state": "finished"}

    return router


def unknown_session(session_id: str) -> str:
    """What is answered, with status 404, about a session that the server does not have."""
    return (
        f"no session {session_id!r}: never seen, expired, or gave way to newer ones; GET /agentinfer/sessions lists all"
    )


def _summary(view: SessionView) -> dict[str, Any]:
    return {name: value for name, value in view.as_dict().items() if name != "recent_turns"}
