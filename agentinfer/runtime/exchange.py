"""One HTTP exchange: the request's bytes read once and handed on, the answer's copied as they leave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from agentinfer.sessions import Outcome

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# An answer longer than this is passed on but not understood: the session keeps its turn, with what was copied of it.
MAX_CAPTURED_BYTES = 64 << 20
# How much of an answer is copied before what repeats itself in it is dropped, the first time; then at twice its length.
SHORTEN_AT_BYTES = 1 << 18


class Exchange:
    """One request's bytes in and answer out, with what became of them.

    `on_complete`, where set, is called once, right after the last byte was handed over and before the event loop can
    read another request: a client's next turn never overtakes the end of this one. `shorten`, where set, takes the copy
    of a long stream's beginning and gives bytes that stand for it.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._unread: list[Message] = []
        self._status = 0
        self.is_complete = False
        self._client_left = False
        self.on_complete: Callable[[], None] | None = None
        self.shorten: Callable[[bytes], bytes] | None = None
        self._shorten_at_bytes = SHORTEN_AT_BYTES
        self.body = b""
        self.content_type = ""
        self.answer = bytearray()

    async def read_body(self) -> None:
        chunks = []
        while True:
            message = await self._receive()
            self._unread.append(message)
            chunks.append(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                break
        self.body = b"".join(chunks)

    def replace_body(self, body: bytes) -> None:
        """The app gets `body` in place of the bytes that were read, which `self.body` still is. Before `receive`."""
        if self._unread[-1]["type"] != "http.request":
            return  # the client left before its request was in, which is what the app is to see
        self._unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive(self) -> Message:
        message = self._unread.pop(0) if self._unread else await self._receive()
        if message["type"] == "http.disconnect" and not self.is_complete:
            self._client_left = True
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = dict(message.get("headers", ()))
            self.content_type = headers.get(b"content-type", b"").decode("latin-1")
        elif message["type"] == "http.response.body":
            if len(self.answer) < MAX_CAPTURED_BYTES:
                self.answer += message.get("body", b"")
            if self.shorten is not None and len(self.answer) > self._shorten_at_bytes and self.is_stream:
                self.answer = bytearray(self.shorten(bytes(self.answer)))
                self._shorten_at_bytes = max(SHORTEN_AT_BYTES, 2 * len(self.answer))
            self.is_complete = not message.get("more_body", False)
            if self.is_complete and self.on_complete is not None:
                self.on_complete()

    @property
    def is_stream(self) -> bool:
        """True when the answer is a server-sent event stream."""
        return self.content_type.startswith("text/event-stream")

    @property
    def outcome(self) -> Outcome:
        """`ok`, `client_gone` (it left before the whole answer) or `error`."""
        if self._client_left or (self._status and not self.is_complete):
            return "client_gone"
        return "ok" if 200 <= self._status < 300 else "error"
