"""Reading a record back: every turn with its full message list, times going on over restarts of the server."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from agentinfer.errors import TraceError
from agentinfer.record.form import FORMAT, NULLABLE, OPTIONAL, REQUIRED, Recording, TurnRecord, check_header, kind_name

logger = logging.getLogger(__name__)


def read_record(path: Path) -> Recording:
    """Read a record file and rebuild every turn's full message list; times go on over restarts of the server.

    A broken last line, the mark of a killed server, is left out with a WARNING. Raises TraceError naming file, line and
    field for anything else that is wrong.
    """
    sessions: dict[str, list[TurnRecord]] = {}
    first_header: Mapping[str, Any] | None = None
    shift_s = 0.0
    for where, line in _lines(path):
        if first_header is None or ("format" in line and "session" not in line):
            header = check_header(where, line)
            first_header = first_header or header
            shift_s = (header.get("started_unix_s") or 0.0) - (first_header.get("started_unix_s") or 0.0)
            continue
        session = line.get("session")
        turns = sessions.setdefault(session, []) if isinstance(session, str) else []
        turns.append(_turn(where, line, turns[-1] if turns else None, shift_s))
    if first_header is None:
        raise TraceError(f"{path}: empty; expected a first line with format {FORMAT!r}")
    return Recording(
        model=first_header.get("model"),
        started_unix_s=first_header.get("started_unix_s"),
        sessions={session: tuple(turns) for session, turns in sessions.items()},
    )


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    broken: str | None = None
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if broken is not None:
                raise TraceError(f"{broken}; expected one JSON object a line")
            if not raw.strip():
                continue
            where = f"{path}, line {number}"
            try:
                line = orjson.loads(raw)
            except orjson.JSONDecodeError as error:
                broken = f"{where}: not JSON ({error})"
                continue
            if not isinstance(line, Mapping):
                raise TraceError(f"{where}: expected a JSON object, got {type(line).__name__}")
            yield where, line
    if broken is not None:
        logger.warning("%s; it is the last line, cut off when the server stopped, and is left out.", broken)


def _turn(where: str, line: Mapping[str, Any], previous: TurnRecord | None, shift_s: float) -> TurnRecord:
    values: dict[str, Any] = {"parent": None, "reply": None}
    for name, kind in (*REQUIRED.items(), *OPTIONAL.items()):
        value = line.get(name)
        if value is None:
            if name in REQUIRED and name not in NULLABLE:
                raise TraceError(f"{where}: {name}: missing; expected {kind_name(kind)}")
        elif not isinstance(value, kind) or isinstance(value, bool):
            raise TraceError(f"{where}: {name}: expected {kind_name(kind)}, got {type(value).__name__}")
        else:
            values[name] = value
    for position, message in enumerate(values["messages"]):
        if not isinstance(message, dict):
            raise TraceError(f"{where}: messages[{position}]: expected an object, got {type(message).__name__}")
    before: list[Mapping[str, Any]] = []
    if previous is not None:
        before = [*previous.messages, *([previous.reply] if previous.reply is not None else [])]
    kept = values.pop("kept")
    if not 0 <= kept <= len(before):
        raise TraceError(f"{where}: kept: the session's previous line has {len(before)} messages, got {kept}")
    values["messages"] = (*before[:kept], *values["messages"])
    values["t_s"] += shift_s
    values["tools"] = tuple(values["tools"]) if "tools" in values else (previous.tools if previous is not None else ())
    return TurnRecord(**values)
