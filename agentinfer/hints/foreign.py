"""Hints that other stacks put into requests: SGLang, OpenAI, Dynamo, ThunderAgent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentinfer.hints import checks

SOURCE_SGLANG: Final = "session_id"
SOURCE_OPENAI: Final = "prompt_cache_key"
SOURCE_DYNAMO_CONTEXT: Final = "nvext.agent_context"
SOURCE_DYNAMO_HEADER: Final = "x-dynamo-session-id"
SOURCE_THUNDERAGENT: Final = "program_id"


def foreign_session(
    body: Mapping[str, Any], headers: Mapping[str, str], context_session: str | None, context_source: str | None
) -> tuple[str | None, str | None]:
    """(session, its source) from the first stack that names one; `context_session` is what `from_dynamo` found.

    Raises HintError naming the field of any stack whose id is malformed.
    """
    # Check every field that is there, so that a malformed one is reported even when another outranks it.
    program = _program_id(body)
    sglang = body.get("session_id")
    # A batch on /generate carries one id a prompt; it is not one turn of one session, so it is not ours to judge.
    sglang = None if isinstance(sglang, list) else _foreign_id(SOURCE_SGLANG, sglang)
    candidates = (
        (sglang, SOURCE_SGLANG),
        (_foreign_id(SOURCE_OPENAI, body.get("prompt_cache_key")), SOURCE_OPENAI),
        (context_session, context_source),
        (_foreign_id(SOURCE_DYNAMO_HEADER, headers.get(SOURCE_DYNAMO_HEADER)), SOURCE_DYNAMO_HEADER),
        (program, SOURCE_THUNDERAGENT),
    )
    return next(((value, source) for value, source in candidates if value is not None), (None, None))


def from_dynamo(body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """AgentHints fields from Dynamo's body and headers, but for the session header, which ranks lower."""
    found: dict[str, Any] = {}
    parent = _foreign_id("x-dynamo-parent-session-id", headers.get("x-dynamo-parent-session-id"))
    if headers.get("x-dynamo-session-final", "").strip().lower() in ("true", "1"):
        found["last"] = True
    nvext = body.get("nvext")
    if isinstance(nvext, Mapping):
        hints = nvext.get("agent_hints")
        if isinstance(hints, Mapping):
            priority, osl = hints.get("priority"), hints.get("osl")
            if priority is not None:
                found["priority"] = checks.integer("nvext.agent_hints.priority", priority)
            if osl is not None:
                found["expected_output_tokens"] = checks.count("nvext.agent_hints.osl", osl)
        context = nvext.get("agent_context")
        if isinstance(context, Mapping):
            # Dynamo's releases have called one chain of reasoning and tools a program, a trajectory and a session;
            # where a trajectory is given, session_id is the whole run, which holds several chains at once.
            for own, above in (
                ("trajectory_id", "parent_trajectory_id"),
                ("program_id", "parent_program_id"),
                ("session_id", "parent_session_id"),
            ):
                path = f"{SOURCE_DYNAMO_CONTEXT}.{own}"
                session = _foreign_id(path, context.get(own))
                if session is not None:
                    found["session"], found["source"] = session, path
                    parent = _foreign_id(f"{SOURCE_DYNAMO_CONTEXT}.{above}", context.get(above)) or parent
                    break
    if parent is not None:
        found["parent"] = parent
    return found


def _program_id(body: Mapping[str, Any]) -> str | None:
    program = body.get("program_id")
    path = SOURCE_THUNDERAGENT
    extra = body.get("extra_body")
    if program is None and isinstance(extra, Mapping):
        program, path = extra.get("program_id"), f"extra_body.{SOURCE_THUNDERAGENT}"
    return _foreign_id(path, program)


def _foreign_id(path: str, value: object) -> str | None:
    return None if value is None or value == "" else checks.session_id(path, value)
