"""The hints of one turn, whoever they came from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

WIRE_VERSION: Final = 1


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
        """A flat, versioned dict of scalars that fits SGLang's ``custom_params``; no `forced`, no absent fields."""
        wire: dict[str, str | int | float | bool] = {"v": WIRE_VERSION}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value is not False and field.name != "forced":
                wire[field.name] = value
        return wire


NO_HINTS: Final = AgentHints()
