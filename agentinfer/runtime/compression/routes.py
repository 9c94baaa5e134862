"""`/agentinfer/sessions/{id}/memory`: what was taken out of a session's context, whole and by its id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, HTTPException

from agentinfer.compress.composition import Composition
from agentinfer.compress.memory import parse_observation_id
from agentinfer.runtime.compression.service import CompressionService
from agentinfer.runtime.routes import unknown_session


def memory_routes(service: Callable[[], CompressionService], is_known: Callable[[str], bool]) -> APIRouter:
    """To be added before the routes of sessions, whose paths take in any slash.

    `is_known` says whether the server has a session of that name, shortened or not.
    """
    router = APIRouter(prefix="/agentinfer", tags=["agentinfer"])

    def composition_of(session_id: str) -> Composition | None:
        # One that is kept across a restart is known before its session has its next turn.
        composition = service().memory(session_id)
        if composition is None and not is_known(session_id):
            raise HTTPException(404, unknown_session(session_id))
        return composition

    @router.get("/sessions/{session_id:path}/memory")
    async def memory(session_id: str) -> dict[str, Any]:
        """What the agent reads only as an id, and the notes that stand for it. Empty where nothing was taken."""
        return {"session": session_id, **_listed(composition_of(session_id))}

    @router.get("/sessions/{session_id:path}/memory/{observation}")
    async def observation(session_id: str, observation: str) -> dict[str, Any]:
        """The source of what a note says: one tool result, word for word."""
        try:
            index = parse_observation_id(observation)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        composition = composition_of(session_id)
        taken = {} if composition is None else composition.taken
        if index not in taken:
            known = ", ".join(each.id for each in taken.values()) or "nothing was taken out of its context"
            raise HTTPException(404, f"session {session_id!r} has no {observation.strip()}. Known: {known}")
        found = taken[index]
        return {"id": found.id, "tool": found.tool, "arguments": found.arguments_text, "text": found.text}

    return router


def _listed(composition: Composition | None) -> dict[str, Any]:
    if composition is None:
        return {"covered_messages": 0, "taken": [], "notes": []}
    taken = [composition.taken[index] for index in sorted(composition.taken)]
    return {
        "covered_messages": composition.covers,
        "taken": [{"id": each.id, "tool": each.tool, "chars": len(each.text)} for each in taken],
        "notes": [{**note.to_json(), "as_read": note.text()} for note in composition.notes],
    }
