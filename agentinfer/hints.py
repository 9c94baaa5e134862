"""What a request says about its agent session: our own object and header, and the fields of other stacks.

A session id is taken from the first of these that has one:

1. body object ``agentinfer`` (ours; every field of `AgentHints`, strict)
2. header ``x-agentinfer-session``
3. SGLang's body field ``session_id``
4. OpenAI's ``prompt_cache_key`` (the key under which Codex and others keep one conversation's prefix)
5. Dynamo's ``nvext.agent_context`` and headers ``x-dynamo-session-id``, ``x-dynamo-parent-session-id``,
   ``x-dynamo-session-final``; ``nvext.agent_hints`` names no session, its ``priority`` and ``osl`` are kept
6. ThunderAgent's ``program_id`` (top level, or in a literal ``extra_body`` object)

Our own fields are checked strictly, unknown keys included, because a typo would silently lose the hint. Fields of other
stacks are checked only where they name a session; whatever else those stacks add is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from agentinfer.errors import HintError

WIRE_VERSION: Final = 1
MAX_SESSION_ID_CHARS: Final = 256
MAX_NAME_CHARS: Final = 128
MAX_EXPECTED_TOOL_S: Final = 7 * 24 * 3600.0
MAX_FORCED_TOKENS: Final = 1 << 20
SESSION_HEADER: Final = "x-agentinfer-session"

SOURCE_BODY: Final = "agentinfer"
SOURCE_HEADER: Final = SESSION_HEADER
SOURCE_SGLANG: Final = "session_id"
SOURCE_OPENAI: Final = "prompt_cache_key"
SOURCE_DYNAMO_CONTEXT: Final = "nvext.agent_context"
SOURCE_DYNAMO_HEADER: Final = "x-dynamo-session-id"
SOURCE_THUNDERAGENT: Final = "program_id"


@dataclass(frozen=True, slots=True)
class Forced:
    """The reply the engine must emit (replay only). Exactly one of the two is set."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class AgentHints:
    """Everything a client may tell about a turn. Every field is optional; `NO_HINTS` is the empty one.

    `turn` counts from 0 within the session. `tool` is the tool the agent is expected to run after this turn and
    `expected_tool_s` its seconds. `last` says no further turn follows. `source` names where `session` came from, as the
    client wrote it. `priority` (higher first) and `expected_output_tokens` come from Dynamo's ``nvext.agent_hints``.
    """

    session: str | None = None
    turn: int | None = None
    parent: str | None = None
    role: str | None = None
    tool: str | None = None
    expected_tool_s: float | None = None
    last: bool = False
    source: str | None = None
    priority: int | None = None
    expected_output_tokens: int | None = None
    forced: Forced | None = None

    def to_wire(self) -> dict[str, str | int | float | bool]:
        """A flat, versioned dict of scalars that fits SGLang's ``custom_params``; absent fields are left out."""
        wire: dict[str, str | int | float | bool] = {"v": WIRE_VERSION}
        for name in _WIRE_CHECKS:
            value = getattr(self, name)
            if value is not None and value is not False:
                wire[name] = value
        return wire


NO_HINTS: Final = AgentHints()


def parse_hints(body: Mapping[str, Any], headers: Mapping[str, str]) -> AgentHints:
    """Read the hints of one request. `headers` has lower-case names.

    Raises HintError naming the field when our object or a session id of any stack is malformed.
    """
    found: dict[str, Any] = _from_dynamo(body, headers)
    session, source = _foreign_session(body, headers, found.pop("session", None), found.pop("source", None))
    header = _session_id(SESSION_HEADER, headers.get(SESSION_HEADER))
    if header is not None:
        session, source = header, SOURCE_HEADER
    own = body.get("agentinfer")
    if own is not None:
        own_fields = _from_own_object(own)
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


def from_wire(wire: Mapping[str, Any]) -> AgentHints:
    """The inverse of `AgentHints.to_wire`. Raises HintError for another version or a malformed field."""
    if wire.get("v") != WIRE_VERSION:
        raise HintError("v", wire.get("v"), f"hint version {WIRE_VERSION}")
    unknown = sorted(set(wire) - set(_WIRE_CHECKS) - {"v"})
    if unknown:
        raise HintError(unknown[0], wire[unknown[0]], f"one of {', '.join(_WIRE_CHECKS)}")
    return AgentHints(**{name: _WIRE_CHECKS[name](name, value) for name, value in wire.items() if name != "v"})


def _from_own_object(own: object) -> dict[str, Any]:
    if not isinstance(own, Mapping):
        raise HintError(SOURCE_BODY, own, "an object")
    found: dict[str, Any] = {}
    for name, value in own.items():
        path = f"{SOURCE_BODY}.{name}"
        if name == "v":
            if type(value) is not int or value != WIRE_VERSION:
                raise HintError(path, value, f"hint version {WIRE_VERSION}")
            continue
        check = _OWN_CHECKS.get(name)
        if check is None:
            raise HintError(path, value, f"a known field ({', '.join(['v', *_OWN_CHECKS])})")
        if value is not None:
            found[name] = check(path, value)
    return found


def _foreign_session(
    body: Mapping[str, Any], headers: Mapping[str, str], context_session: str | None, context_source: str | None
) -> tuple[str | None, str | None]:
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


def _from_dynamo(body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
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
                found["priority"] = _integer("nvext.agent_hints.priority", priority)
            if osl is not None:
                found["expected_output_tokens"] = _count("nvext.agent_hints.osl", osl)
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
    return None if value is None or value == "" else _session_id(path, value)


def _session_id(path: str, value: object) -> str | None:
    if value is None:
        return None
    return _text(path, value, MAX_SESSION_ID_CHARS)


def _name(path: str, value: object) -> str:
    return _text(path, value, MAX_NAME_CHARS)


def _text(path: str, value: object, max_chars: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= max_chars or not value.isprintable():
        raise HintError(path, value, f"a string of 1 to {max_chars} printable characters")
    return value


def _required_id(path: str, value: object) -> str:
    return _text(path, value, MAX_SESSION_ID_CHARS)


def _integer(path: str, value: object) -> int:
    if type(value) is not int or not -(1 << 31) <= value < 1 << 31:
        raise HintError(path, value, "a 32-bit integer")
    return value


def _count(path: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise HintError(path, value, "an integer >= 0")
    return value


def _seconds(path: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise HintError(path, value, "seconds as a number")
    if not 0 <= value <= MAX_EXPECTED_TOOL_S:  # false for NaN and infinities too
        raise HintError(path, value, f"finite seconds from 0 to {MAX_EXPECTED_TOOL_S:.0f}")
    return float(value)


def _flag(path: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise HintError(path, value, "true or false")
    return value


def _forced(path: str, value: object) -> Forced:
    if not isinstance(value, Mapping) or len(value) != 1 or not set(value) <= {"text", "token_ids"}:
        raise HintError(path, value, 'an object with either "text" or "token_ids"')
    if "text" in value:
        if not isinstance(value["text"], str):
            raise HintError(f"{path}.text", value["text"], "a string")
        return Forced(text=value["text"])
    token_ids = value["token_ids"]
    if not isinstance(token_ids, list) or not 0 < len(token_ids) <= MAX_FORCED_TOKENS:
        raise HintError(f"{path}.token_ids", token_ids, f"a list of 1 to {MAX_FORCED_TOKENS} token ids")
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in token_ids):
        bad = next(token for token in token_ids if not (type(token) is int and 0 <= token < 1 << 31))
        raise HintError(f"{path}.token_ids", bad, "token ids as integers >= 0")
    return Forced(token_ids=tuple(token_ids))


_OWN_CHECKS: Final[dict[str, Callable[[str, object], Any]]] = {
    "session": _required_id,
    "turn": _count,
    "parent": _required_id,
    "role": _name,
    "tool": _name,
    "expected_tool_s": _seconds,
    "last": _flag,
    "forced": _forced,
}
_WIRE_CHECKS: Final[dict[str, Callable[[str, object], Any]]] = {
    **{name: check for name, check in _OWN_CHECKS.items() if name != "forced"},
    "source": _name,
    "priority": _integer,
    "expected_output_tokens": _count,
}
assert set(_WIRE_CHECKS) | {"forced"} == {field.name for field in fields(AgentHints)}
