"""All hints of one request, by rank of who gave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentinfer.errors import HintError
from agentinfer.hints.checks import session_id
from agentinfer.hints.foreign import foreign_session, from_dynamo
from agentinfer.hints.model import NO_HINTS, AgentHints
from agentinfer.hints.own import SOURCE_BODY, from_own_object

SESSION_HEADER: Final = "x-agentinfer-session"


def parse_hints(body: Mapping[str, Any], headers: Mapping[str, str]) -> AgentHints:
    """Read the hints of one request. `headers` has lower-case names.

    Raises HintError naming the field when our object or a session id of any stack is malformed.
    """
    found: dict[str, Any] = from_dynamo(body, headers)
    session, source = foreign_session(body, headers, found.pop("session", None), found.pop("source", None))
    header = headers.get(SESSION_HEADER)
    if header is not None:
        session, source = session_id(SESSION_HEADER, header), SESSION_HEADER
    own = body.get("agentinfer")
    if own is not None:
        own_fields = from_own_object(own)
        if "session" in own_fields:
            session, source = own_fields.pop("session"), SOURCE_BODY
        found.update(own_fields)
    if session is None and not found:
        return NO_HINTS
    if session is not None and found.get("parent") == session:
        if own is not None and own.get("parent") is not None:
            raise HintError(f"{SOURCE_BODY}.parent", session, "a session other than this one")
        del found["parent"]
    return AgentHints(session=session, source=source, **found)
