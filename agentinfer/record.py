"""The session record: a JSON line a turn, written by a server and read back by replay (``agentinfer.sessions`` v1).

Every start of a server writes a header, ``{"format", "version", "model", "started_unix_s"}``. A turn's line gives only
the messages that its session's previous line did not have, so a file grows with what was said, not with its square.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from agentinfer.errors import TraceError
from agentinfer.messages import canonical_digest

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class _Written:
    """What the file's last line of a session says: digests of its messages and reply, and of its tools."""

    digests: tuple[bytes, ...]
    tools_digest: bytes


class RecordWriter:
    """Appends turns to a file. Serving must not suffer: `write` and `close` never raise.

    Each line is one unbuffered write. When one fails, on a full disk say, what it left is cut off again, one WARNING
    goes out, and lines are counted in `num_dropped` until a write succeeds. Not thread-safe.
    """

    def __init__(self, path: Path, model: str | None, started_unix_s: float, max_sessions: int = 4096) -> None:
        """Open `path`, continuing a record that is there.

        What the last `max_sessions` sessions have in the file is remembered, 16 bytes a message; the next line of a
        forgotten one repeats its messages. Raises TraceError when the file holds something else, OSError when it
        cannot be opened.
        """
        self.path = path
        self.num_dropped = 0
        self._max_sessions = max_sessions
        self._written: OrderedDict[str, _Written] = OrderedDict()
        self._is_failing = False
        _check_appendable(path)
        self._file = path.open("ab", buffering=0)
        self._size_bytes = self._file.tell()
        self._append({"format": FORMAT, "version": VERSION, "model": model, "started_unix_s": started_unix_s})

    def write(self, turn: TurnRecord) -> bool:
        """Append a turn; False when the line was dropped."""
        before = self._written.pop(turn.session, _NOTHING)
        tools_digest = canonical_digest(list(turn.tools))
        digests = [_message_digest(message) for message in turn.messages]
        kept = 0
        for ours, theirs in zip(digests, before.digests, strict=False):
            if ours != theirs:
                break
            kept += 1
        line: dict[str, Any] = {name: getattr(turn, name) for name in _REQUIRED if name != "kept"}
        line |= {"kept": kept, "messages": list(turn.messages[kept:])}
        line |= {name: value for name in _OPTIONAL if (value := getattr(turn, name)) not in (None, {}, ())}
        if tools_digest == before.tools_digest:
            line.pop("tools", None)
        else:
            line["tools"] = list(turn.tools)
        if not self._append(line):
            return False
        if turn.reply is not None:
            digests.append(_message_digest(turn.reply))
        self._written[turn.session] = _Written(tuple(digests), tools_digest)
        while len(self._written) > self._max_sessions:
            self._written.popitem(last=False)
        return True

    def close(self) -> None:
        """Close the file; later lines are dropped."""
        with suppress(OSError):
            self._file.close()

    def _append(self, line: Mapping[str, Any]) -> bool:
        try:
            data = orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS) + b"\n"
            written = self._file.write(data)
            if written != len(data):
                raise OSError(f"wrote {written} of {len(data)} bytes")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            self._give_up_on_line(error)
            return False
        self._size_bytes += len(data)
        if self._is_failing:
            self._is_failing = False
            logger.info("Recording to %s works again after %d lines were dropped.", self.path, self.num_dropped)
        return True

    def _give_up_on_line(self, error: Exception) -> None:
        self.num_dropped += 1
        with suppress(OSError, ValueError):
            self._file.truncate(self._size_bytes)
        if not self._is_failing:
            self._is_failing = True
            logger.warning(
                "Recording to %s fails (%s); lines are dropped until it works again. Serving goes on.", self.path, error
            )


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
            header = _header(where, line)
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


def _header(where: str, line: Mapping[str, Any]) -> Mapping[str, Any]:
    if line.get("format") != FORMAT:
        raise TraceError(f"{where}: format: expected {FORMAT!r}, got {line.get('format')!r}")
    if line.get("version") != VERSION:
        raise TraceError(f"{where}: version: this reader knows {VERSION}, got {line.get('version')!r}")
    for name, kind in (("model", str), ("started_unix_s", int | float)):
        if line.get(name) is not None and not isinstance(line[name], kind):
            raise TraceError(f"{where}: {name}: expected {_kind_name(kind)}, got {line[name]!r}")
    return line


def _turn(where: str, line: Mapping[str, Any], previous: TurnRecord | None, shift_s: float) -> TurnRecord:
    values: dict[str, Any] = {"parent": None, "reply": None}
    for name, kind in (*_REQUIRED.items(), *_OPTIONAL.items()):
        value = line.get(name)
        if value is None:
            if name in _REQUIRED and name not in _NULLABLE:
                raise TraceError(f"{where}: {name}: missing; expected {_kind_name(kind)}")
        elif not isinstance(value, kind) or isinstance(value, bool):
            raise TraceError(f"{where}: {name}: expected {_kind_name(kind)}, got {type(value).__name__}")
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


def _check_appendable(path: Path) -> None:
    """Raise TraceError unless `path` is new, empty or a record; cut off a last line that a killed server broke."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        first = file.readline()
        try:
            _header(f"{path}, line 1", orjson.loads(first))
        except (orjson.JSONDecodeError, AttributeError):
            raise TraceError(f"{path}: not a record, and not empty; choose another file to record to") from None
        end = _end_of_last_line(file)
        if end < file.seek(0, os.SEEK_END):
            logger.warning("%s: the last line is broken, cut off when the server stopped, and is removed.", path)
            file.truncate(end)


def _end_of_last_line(file: BinaryIO, block_bytes: int = 1 << 16) -> int:
    position = file.seek(0, os.SEEK_END)
    while position:
        start = max(0, position - block_bytes)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def _message_digest(message: Mapping[str, Any]) -> bytes:
    # A client that sends our reply back leaves out what was null or empty; that is no difference.
    return canonical_digest({name: value for name, value in message.items() if value not in (None, "", [])})


def _kind_name(kind: Any) -> str:
    return {str: "a string", int: "an integer", list: "a list", dict: "an object"}.get(kind, "a number")


_REQUIRED: Final[dict[str, Any]] = {
    "session": str,
    "parent": str,
    "turn": int,
    "api": str,
    "t_s": int | float,
    "kept": int,
    "messages": list,
    "reply": dict,
}
_NOTHING: Final = _Written((), canonical_digest([]))
_NULLABLE: Final = ("parent", "reply")
_OPTIONAL: Final[dict[str, Any]] = {
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
