"""Server-sent events from a byte stream: data payloads, whatever way the network cut them."""

from __future__ import annotations


class EventDecoder:
    """Feed bytes as they come; get the `data:` payload of each complete event. Comments, other fields are skipped."""

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[bytes]:
        *lines, self._pending = (self._pending + received).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
