"""A turn whose context is composed: the engine is asked again for as long as it asks nothing but `recall`.

The client sees one reply. What the model and the server said to each other behind it is kept for the session's later
prompts (`compress.hidden`). Beside calls of the client's own tools, a `recall` is answered as well, but the model reads
the answer in the next turn, with the results of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from agentinfer.compress.hidden import SEPARATOR, Exchange
from agentinfer.compress.recall import RECALL, offering
from agentinfer.runtime.compression.recall.answers import Answer, HiddenCall, Told, summed
from agentinfer.runtime.compression.recall.streamed import StreamedAnswer
from agentinfer.runtime.compression.recall.whole import joined_whole, read_whole
from agentinfer.runtime.exchange import App, Message, Receive, Scope, Send

# After so many answered rounds of one turn, the tool is no longer offered, and the model has to go on.
MAX_ROUNDS: Final = 4


class RecallingTurn:
    """An ASGI app in place of `app` for one request, in which `recall` was offered.

    `request` is that request as it is without the tool. `answer` gives the result of a call's arguments, `keep` is
    given the exchange before the client has its reply's last byte, `asked_again` is told each time that the engine is.
    """

    def __init__(
        self,
        app: App,
        request: Mapping[str, Any],
        answer: Callable[[str], str],
        keep: Callable[[Exchange], None],
        asked_again: Callable[[], None],
    ) -> None:
        self._app = app
        self._request = request
        self._answer = answer
        self._keep = keep
        self._asked_again = asked_again
        self._told = Told()
        self._behind: list[dict[str, Any]] = []
        self._num_rounds = 0
        self._has_client_left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _Response(self._told, send, is_started=False)
        await self._app(scope, self._watched(receive), response.send)
        while response.is_complete and not self._has_client_left:
            request = self._next_request(response)
            if request is None:
                self._keep_what_was_said(response.said)
                await response.finish()
                return
            self._asked_again()
            response = _Response(self._told, send, response.is_started)
            raw = orjson.dumps(request)
            headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"transfer-encoding")]
            further = {**scope, "headers": [*headers, (b"content-length", str(len(raw)).encode())]}
            await self._app(further, self._watched(receive, raw), response.send)

    def _next_request(self, response: _Response) -> dict[str, Any] | None:
        """What the engine is to be asked next; None where the client's turn ends."""
        said = response.said
        messages = self._request["messages"]
        if said is None:
            if not self._behind or response.has_told:
                return None
            # It may be that what was recalled does not fit: once more without it, and without the tool.
            self._behind.clear()
            self._num_rounds = MAX_ROUNDS
            return _anew(self._request, messages)
        if not said.asks_only_us or self._num_rounds >= MAX_ROUNDS:
            return None
        self._num_rounds += 1
        self._told.usage = summed(self._told.usage, said.usage) if said.usage else self._told.usage
        self._told.text += SEPARATOR + said.text if self._told.text and said.text else said.text
        self._behind.append(_spoken(said))
        self._behind += self._results(said.hidden)
        request = _anew(self._request, [*messages, *self._behind])
        return dict(offering(request)) if self._num_rounds < MAX_ROUNDS else request

    def _keep_what_was_said(self, said: Answer | None) -> None:
        if said is None or not (self._behind or said.asks_both):
            return
        among = said.hidden if said.asks_both else []
        self._keep(
            Exchange(
                before=tuple(self._behind),
                said=self._told.text if self._behind else "",
                beside=tuple((call.place, call.as_openai(RECALL)) for call in among),
                results=tuple(self._results(among)),
            )
        )

    def _results(self, calls: list[HiddenCall]) -> list[dict[str, Any]]:
        return [{"role": "tool", "tool_call_id": call.id, "content": self._answer(call.arguments)} for call in calls]

    def _watched(self, receive: Receive, body: bytes | None = None) -> Receive:
        """The client's side of an asking, which begins with `body` where that is not the client's own."""
        unread = [] if body is None else [body]

        async def watched() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            message = await receive()
            self._has_client_left |= message["type"] == "http.disconnect"
            return message

        return watched


class _Response:
    """The engine's response to one asking: a stream passes at once, anything else is kept. `is_started`: whether the
    client has been sent a response's start."""

    def __init__(self, told: Told, send: Send, is_started: bool) -> None:
        self._told = told
        self._send = send
        self._start: Message = {}
        self._body = bytearray()
        self._stream: StreamedAnswer | None = None
        self.is_started = is_started
        self.is_complete = False

    @property
    def said(self) -> Answer | None:
        """What the model said; None for an error."""
        if self._stream is not None:
            return None if self._stream.said.error else self._stream.said
        body = self._object()
        try:
            return None if body is None else read_whole(RECALL, body)
        except (LookupError, TypeError, AttributeError):
            return None

    @property
    def has_told(self) -> bool:
        """Whether the client has had some of its text."""
        return self._stream is not None and bool(self._stream.said.text)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            if message["status"] == 200 and kind.startswith(b"text/event-stream"):
                self._stream = StreamedAnswer(RECALL, self._told)
                if not self.is_started:
                    self.is_started = True
                    await self._send(message)
        elif message["type"] == "http.response.body":
            self.is_complete = not message.get("more_body", False)
            if self._stream is None:
                self._body += message.get("body", b"")
            elif passed := self._stream.feed(message.get("body", b"")):
                await self._send({"type": "http.response.body", "body": passed, "more_body": True})
        else:
            await self._send(message)

    async def finish(self) -> None:
        """The client's response ends with this one."""
        if self._stream is not None:
            body = self._stream.end()
        elif self.is_started:  # an error, after a stream has begun
            body = b"data: " + orjson.dumps({"error": self._object() or {}}) + b"\n\ndata: [DONE]\n\n"
        else:
            said = self.said
            whole = self._object()
            body = bytes(self._body)
            if said is not None and whole is not None:
                body = orjson.dumps(joined_whole(RECALL, whole, said, self._told))
            headers = [pair for pair in self._start.get("headers", ()) if pair[0] != b"content-length"]
            await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _object(self) -> dict[str, Any] | None:
        try:
            body = orjson.loads(bytes(self._body))
        except orjson.JSONDecodeError:
            return None
        return body if isinstance(body, dict) else None


def _anew(request: Mapping[str, Any], messages: list[Any]) -> dict[str, Any]:
    """The request with these messages, as another of the same client."""
    return {**{name: value for name, value in request.items() if name != "rid"}, "messages": messages}


def _spoken(said: Answer) -> dict[str, Any]:
    """The model's message that called `recall`, as it stands in a history."""
    message: dict[str, Any] = {"role": "assistant", "content": said.text or None}
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    return {**message, "tool_calls": [call.as_openai(RECALL) for call in said.hidden]}
