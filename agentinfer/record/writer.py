"""Writing a record beside a server that serves: lines go out whole or not at all, and nothing here stops a turn."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from agentinfer.errors import TraceError
from agentinfer.messages import canonical_digest
from agentinfer.record.form import FORMAT, OPTIONAL, REQUIRED, VERSION, TurnRecord, check_header

logger = logging.getLogger(__name__)


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
        line: dict[str, Any] = {name: getattr(turn, name) for name in REQUIRED if name != "kept"}
        line |= {"kept": kept, "messages": list(turn.messages[kept:])}
        line |= {name: value for name in OPTIONAL if (value := getattr(turn, name)) not in (None, {}, ())}
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


def _check_appendable(path: Path) -> None:
    """Raise TraceError unless `path` is new, empty or a record; cut off a last line that a killed server broke."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        first = file.readline()
        try:
            check_header(f"{path}, line 1", orjson.loads(first))
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


_NOTHING: Final = _Written((), canonical_digest([]))
