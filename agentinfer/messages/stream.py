"""Reading streams: server-sent events, texts and tool calls that arrive in pieces, and fields of any shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from agentinfer.messages.model import ToolCall


def stream_events(data: bytes) -> Iterator[Mapping[str, Any]]:
    """The events of a server-sent stream that are JSON objects."""
    return (event for _, event in stream_lines(data))


def stream_lines(data: bytes) -> Iterator[tuple[bytes, Mapping[str, Any]]]:
    """The same with the line each stands on."""
    for line in data.split(b"\n"):
        if line.startswith(b"data:"):
            payload = line[5:].strip()
            if payload and payload != b"[DONE]":
                try:
                    event = orjson.loads(payload)
                except orjson.JSONDecodeError:
                    continue  # the line at which the stream was cut off
                if isinstance(event, Mapping):
                    yield line, event


class CallParts:
    """Tool calls that arrive in pieces, joined by their index in the stream."""

    def __init__(self) -> None:
        self._calls: dict[object, tuple[list[str], list[str], list[str]]] = {}

    def add(self, index: object, call_id: object, name: object, arguments: object) -> None:
        """Take in a piece; what is no string is left out."""
        key = index if isinstance(index, int) else len(self._calls)
        ids, names, texts = self._calls.setdefault(key, ([], [], []))
        if not ids:
            append_text(ids, call_id)
        if not names:
            append_text(names, name)
        append_text(texts, arguments)

    def joined(self, reserialised: bool = False) -> tuple[ToolCall, ...]:
        """The calls, in the order in which they began; with `reserialised` their arguments as compact JSON."""
        calls = []
        for ids, names, texts in self._calls.values():
            arguments = "".join(texts)
            if reserialised:
                arguments = _reserialised(arguments or "{}")
            calls.append(ToolCall("".join(ids) or None, "".join(names), arguments))
        return tuple(calls)


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def append_text(parts: list[str], value: object) -> None:
    if isinstance(value, str) and value:
        parts.append(value)


def _reserialised(arguments: str) -> str:
    try:
        return orjson.dumps(orjson.loads(arguments)).decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return arguments
