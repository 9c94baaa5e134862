"""Our own record (`--agentinfer-record`) as sessions; `agentinfer.record` reads the lines, the gaps are found here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentinfer.errors import TraceError
from agentinfer.record import FORMAT, TurnRecord, read_record
from agentinfer.replay.session import Message, Session, Turn, called_tools, clean_message
from agentinfer.replay.traces.files import TraceFile


def matches(first_line: dict[str, Any]) -> bool:
    return first_line.get("format") == FORMAT


def read(file: TraceFile) -> list[Session]:
    # The record's reader takes a plain file; what was compressed is laid out for it, and errors name the original.
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / file.path.name
        plain.write_bytes(file.data)
        try:
            recording = read_record(plain)
        except TraceError as error:
            raise TraceError(str(error).replace(str(plain), str(file.path))) from error
    source = f"agentinfer record of {recording.model or 'an unnamed model'}"
    return [_session(name, turns, source, file.path) for name, turns in recording.sessions.items()]


def _session(name: str, recorded: Sequence[TurnRecord], source: str, path: Path) -> Session:
    """Turns without a reply are left out: the client had gone or the request failed, so there is nothing to replay."""
    answered = [turn for turn in recorded if turn.reply is not None]
    # One clean object a message, so that a turn's prompt shares the messages of the turn before.
    cleaned: dict[int, Message] = {}

    def clean(message: Any, place: str) -> Message:
        if id(message) not in cleaned:
            cleaned[id(message)] = clean_message(message, f"{path}: session {name}", place)
        return cleaned[id(message)]

    turns = []
    for index, turn in enumerate(answered):
        reply = clean(turn.reply, f"turn {turn.turn}: reply")
        prompt = tuple(clean(m, f"turn {turn.turn}: messages[{i}]") for i, m in enumerate(turn.messages))
        following = answered[index + 1] if index + 1 < len(answered) else None
        gap_s = None if following is None else _gap_s(turn, following)
        turns.append(Turn(index, prompt, reply, gap_s, called_tools(reply)))
    tools: list[Any] = [turn.tools for turn in recorded if turn.tools]
    return Session(
        id=name,
        task=name,
        run="",
        source=source,
        turns=tuple(turns),
        # A request has one list for the whole session here; the last one told is the most complete.
        tool_schemas=tuple(tools[-1]) if tools else (),
        parent=recorded[0].parent,
    )


def _gap_s(turn: TurnRecord, following: TurnRecord) -> float | None:
    if following.tool_gap_s is not None:
        return max(0.0, float(following.tool_gap_s))
    if turn.latency_s is None:
        return None
    return max(0.0, following.t_s - turn.t_s - turn.latency_s)
