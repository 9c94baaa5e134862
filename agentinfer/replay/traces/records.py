"""Our own record, format version 1 (`--agentinfer-record`): turns of interleaved sessions, put together again.

A line tells the messages that are new since the session's previous turn; `kept` counts those taken over, the previous
reply included. A cut last line is what a killed server leaves: it is dropped.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import orjson

from agentinfer.errors import TraceError
from agentinfer.replay.session import Message, Session, Turn, called_tools, clean_message
from agentinfer.replay.traces.files import TraceFile

logger = logging.getLogger(__name__)

FORMAT_NAME = "agentinfer.sessions"


@dataclass(slots=True)
class _Recorded:
    """One session while it is being read; `said` is the conversation after its last turn."""

    parent: str | None
    said: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    ended_s: float | None = None
    tools: tuple[dict[str, Any], ...] = ()


def matches(first_line: dict[str, Any]) -> bool:
    return first_line.get("format") == FORMAT_NAME


def read(file: TraceFile) -> list[Session]:
    lines = list(file.lines())
    header = orjson.loads(lines[0][1])
    if header.get("version") != 1:
        raise TraceError(f"{file.path}:{lines[0][0]}: version: expected 1, got {header.get('version')!r}")
    sessions: dict[str, _Recorded] = {}
    for number, raw in lines[1:]:
        where = f"{file.path}:{number}"
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            if number == lines[-1][0]:
                logger.warning("%s: last line is cut; read without it", where)
                break
            raise TraceError(f"{where}: not JSON ({error})") from error
        name = line.get("session") if isinstance(line, dict) else None
        if not isinstance(name, str):
            raise TraceError(f"{where}: session: expected a session id, got {name!r}")
        _add_turn(sessions.setdefault(name, _Recorded(parent=line.get("parent"))), line, where)
    return [
        Session(
            id=name,
            task=name,
            run="",
            source=f"agentinfer record of {header.get('model')}",
            turns=tuple(recorded.turns),
            tool_schemas=recorded.tools,
            parent=recorded.parent,
        )
        for name, recorded in sessions.items()
    ]


def _add_turn(recorded: _Recorded, line: dict[str, Any], where: str) -> None:
    kept, new = line.get("kept", 0), line.get("messages")
    if not isinstance(kept, int) or not 0 <= kept <= len(recorded.said):
        raise TraceError(f"{where}: kept: expected 0 to {len(recorded.said)} messages, got {kept!r}")
    if not isinstance(new, list):
        raise TraceError(f"{where}: messages: expected a list, got {type(new).__name__}")
    prompt = recorded.said[:kept]
    prompt += [clean_message(message, where, f"messages[{i}]") for i, message in enumerate(new)]
    arrived_s = _seconds(line, "t_s", where)
    if recorded.turns and recorded.turns[-1].gap_s is None and recorded.ended_s is not None and arrived_s is not None:
        measured_s = _seconds(line, "tool_gap_s", where)
        gap_s = max(0.0, arrived_s - recorded.ended_s) if measured_s is None else measured_s
        last = recorded.turns[-1]
        recorded.turns[-1] = Turn(last.index, last.prompt, last.reply, gap_s, last.tools)
    recorded.tools = tuple(line.get("tools") or ()) or recorded.tools
    if line.get("reply") is None:
        # The client went away or the request failed: no reply to force, and the next turn keeps from this prompt.
        recorded.said = prompt
        return
    reply = clean_message(line["reply"], where, "reply")
    recorded.turns.append(Turn(len(recorded.turns), tuple(prompt), reply, None, called_tools(reply)))
    recorded.said = [*prompt, reply]
    latency_s = _seconds(line, "latency_s", where)
    recorded.ended_s = None if arrived_s is None or latency_s is None else arrived_s + latency_s


def _seconds(line: dict[str, Any], key: str, where: str) -> float | None:
    value = line.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TraceError(f"{where}: {key}: expected seconds, got {value!r}")
    return float(value)
