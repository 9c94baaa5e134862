"""Our own forms of hints: the strict ``agentinfer`` object of a request, and the wire form for the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from agentinfer.errors import HintError
from agentinfer.hints import checks
from agentinfer.hints.model import WIRE_VERSION, AgentHints

SOURCE_BODY: Final = "agentinfer"


def from_own_object(own: object) -> dict[str, Any]:
    """The fields of AgentHints that the object sets. Raises HintError for unknown and malformed ones."""
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


def from_wire(wire: Mapping[str, Any]) -> AgentHints:
    """The inverse of `AgentHints.to_wire`. Raises HintError for another version or a malformed field."""
    if wire.get("v") != WIRE_VERSION:
        raise HintError("v", wire.get("v"), f"hint version {WIRE_VERSION}")
    unknown = sorted(set(wire) - set(_WIRE_CHECKS) - {"v"})
    if unknown:
        raise HintError(unknown[0], wire[unknown[0]], f"one of {', '.join(_WIRE_CHECKS)}")
    return AgentHints(**{name: _WIRE_CHECKS[name](name, value) for name, value in wire.items() if name != "v"})


_OWN_CHECKS: Final[dict[str, Callable[[str, object], Any]]] = {
    "session": checks.session_id,
    "turn": checks.count,
    "parent": checks.session_id,
    "role": checks.name,
    "tool": checks.name,
    "expected_tool_s": checks.seconds,
    "last": checks.flag,
    "forced": checks.forced,
}
_WIRE_CHECKS: Final[dict[str, Callable[[str, object], Any]]] = {
    **{name: check for name, check in _OWN_CHECKS.items() if name != "forced"},
    "source": checks.name,
    "priority": checks.integer,
    "expected_output_tokens": checks.count,
}
assert set(_WIRE_CHECKS) | {"forced"} == {field.name for field in fields(AgentHints)}
