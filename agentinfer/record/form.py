"""The form of a record: what a turn's line holds, and the checks that reader and writer share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentinfer.errors import TraceError

FORMAT: Final = "agentinfer.sessions"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One turn. Times are in seconds, `t_s` since the recording started; None is what was not measured.

    `messages` are always the whole request here. On its line in the file stand only those after the first `kept` of
    (the messages and the reply of the session's previous line), and `tools` only where they changed.
    """

    session: str
    parent: str | None
    turn: int
    api: str
    t_s: float
    messages: Sequence[Mapping[str, Any]]
    reply: Mapping[str, Any] | None
    tools: Sequence[Any] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    ttft_s: float | None = None
    latency_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    tool: str | None = None
    tool_gap_s: float | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """A record file: its header, and every session's turns in order, with full message lists."""

    model: str | None
    started_unix_s: float | None
    sessions: Mapping[str, tuple[TurnRecord, ...]]


def check_header(where: str, line: Mapping[str, Any]) -> Mapping[str, Any]:
    """`line`, a header that this version reads; `where` is its file and line. Raises TraceError naming the field."""
    if line.get("format") != FORMAT:
        raise TraceError(f"{where}: format: expected {FORMAT!r}, got {line.get('format')!r}")
    if line.get("version") != VERSION:
        raise TraceError(f"{where}: version: this reader knows {VERSION}, got {line.get('version')!r}")
    for name, kind in (("model", str), ("started_unix_s", int | float)):
        if line.get(name) is not None and not isinstance(line[name], kind):
            raise TraceError(f"{where}: {name}: expected {kind_name(kind)}, got {line[name]!r}")
    return line


def kind_name(kind: Any) -> str:
    """A JSON type of the tables below in words."""
    return {str: "a string", int: "an integer", list: "a list", dict: "an object"}.get(kind, "a number")


REQUIRED: Final[dict[str, Any]] = {
    "session": str,
    "parent": str,
    "turn": int,
    "api": str,
    "t_s": int | float,
    "kept": int,
    "messages": list,
    "reply": dict,
}
"""Fields of every turn's line and their JSON types."""
NULLABLE: Final = ("parent", "reply")
"""Required fields that may be null."""
OPTIONAL: Final[dict[str, Any]] = {
    "tools": list,
    "sampling": dict,
    "ttft_s": int | float,
    "latency_s": int | float,
    "prompt_tokens": int,
    "cached_tokens": int,
    "completion_tokens": int,
    "finish_reason": str,
    "tool": str,
    "tool_gap_s": int | float,
}
"""Fields that are left out where there is nothing to say."""
