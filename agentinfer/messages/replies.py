"""Reading an answer: the assistant's reply in a response as the client received it, whole or streamed, of five APIs.

Only the first choice is read: a session continues with one answer. Nothing here raises on malformed or truncated input;
a stream that was cut off gives what had arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from agentinfer.messages.content import anthropic_messages, chat_message, joined_assistant, merged_output_items
from agentinfer.messages.model import Api, Message, ToolCall
from agentinfer.messages.stream import CallParts, append_text, mapping, stream_events, stream_lines, text_or_none


@dataclass(frozen=True)
class Reply:
    """The assistant's answer. `finish_reason` is the API's own word, None when the answer was cut off."""

    text: str = ""
    reasoning_text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    response_id: str | None = None
    token_ids: tuple[int, ...] | None = field(default=None, repr=False)

    @cached_property
    def message(self) -> Message:
        """The reply as the message that a client would append to its conversation."""
        return Message("assistant", self.text, self.tool_calls, reasoning_text=self.reasoning_text)

    @property
    def is_empty(self) -> bool:
        """True when nothing was said: no text, no reasoning, no call, no token."""
        return not (self.text or self.reasoning_text or self.tool_calls or self.token_ids)

    @staticmethod
    def from_json(api: Api, body: Mapping[str, Any]) -> Reply:
        """The reply in a whole response body; an empty reply where there is none."""
        return _JSON_READERS[api](body) if isinstance(body, Mapping) else Reply()

    @staticmethod
    def from_sse(api: Api, data: bytes) -> Reply:
        """The reply in a server-sent event stream, `data` being all bytes that were sent."""
        return _generate_sse(data) if api == "generate" else _SSE_READERS[api](stream_events(data))


def shortened(api: Api, data: bytes) -> bytes:
    """Bytes that can stand for the beginning `data` of a stream of which `Reply.from_sse` is asked later.

    An answer on /generate is streamed in bytes that grow with its square; this leaves about one event of them.
    """
    if api != "generate":
        return data
    end = data.rfind(b"\n") + 1
    return b"".join(line + b"\n\n" for line, _ in _unrepeated(data[:end])) + data[end:]


def _chat_json(body: Mapping[str, Any]) -> Reply:
    choice = _first_choice(body)
    read = chat_message(mapping(choice.get("message")))
    return Reply(read.text, read.reasoning_text, read.tool_calls, text_or_none(choice.get("finish_reason")), _id(body))


def _chat_sse(events: Iterator[Mapping[str, Any]]) -> Reply:
    text: list[str] = []
    reasoning: list[str] = []
    calls = CallParts()
    finish_reason = response_id = None
    for event in events:
        response_id = response_id or _id(event)
        choice = _first_choice(event)
        delta = mapping(choice.get("delta"))
        append_text(text, delta.get("content"))
        append_text(reasoning, delta.get("reasoning_content"))
        pieces = delta.get("tool_calls")
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, Mapping):
                function = mapping(piece.get("function"))
                calls.add(piece.get("index"), piece.get("id"), function.get("name"), function.get("arguments"))
        finish_reason = text_or_none(choice.get("finish_reason")) or finish_reason
    return Reply("".join(text), "".join(reasoning), calls.joined(), finish_reason, response_id)


def _completions_json(body: Mapping[str, Any]) -> Reply:
    choice = _first_choice(body)
    return Reply(
        text_or_none(choice.get("text")) or "",
        finish_reason=text_or_none(choice.get("finish_reason")),
        response_id=_id(body),
    )


def _completions_sse(events: Iterator[Mapping[str, Any]]) -> Reply:
    text: list[str] = []
    finish_reason = response_id = None
    for event in events:
        response_id = response_id or _id(event)
        choice = _first_choice(event)
        append_text(text, choice.get("text"))
        finish_reason = text_or_none(choice.get("finish_reason")) or finish_reason
    return Reply("".join(text), finish_reason=finish_reason, response_id=response_id)


def _responses_json(body: Mapping[str, Any]) -> Reply:
    return _responses_reply(body.get("output"), text_or_none(body.get("status")), _id(body))


def _responses_sse(events: Iterator[Mapping[str, Any]]) -> Reply:
    items: list[Any] = []
    response_id = status = None
    for event in events:
        kind = event.get("type")
        response = mapping(event.get("response"))
        response_id = _id(response) or response_id
        if kind == "response.output_item.done":
            items.append(event.get("item"))
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            status = text_or_none(response.get("status"))
            output = response.get("output")
            items = output if isinstance(output, list) and output else items
    return _responses_reply(items, status, response_id)


def _responses_reply(output: object, status: str | None, response_id: str | None) -> Reply:
    items = [item for item in output if isinstance(item, Mapping)] if isinstance(output, list) else []
    read = joined_assistant([message for message in merged_output_items(items) if message.role == "assistant"])
    return Reply(read.text, read.reasoning_text, read.tool_calls, status, response_id)


def _anthropic_json(body: Mapping[str, Any]) -> Reply:
    read = joined_assistant(anthropic_messages("assistant", body.get("content")))
    return Reply(read.text, read.reasoning_text, read.tool_calls, text_or_none(body.get("stop_reason")), _id(body))


def _anthropic_sse(events: Iterator[Mapping[str, Any]]) -> Reply:
    text: list[str] = []
    reasoning: list[str] = []
    calls = CallParts()
    finish_reason = response_id = None
    for event in events:
        kind = event.get("type")
        if kind == "message_start":
            response_id = _id(mapping(event.get("message")))
        elif kind == "content_block_start":
            block = mapping(event.get("content_block"))
            if block.get("type") == "tool_use":
                calls.add(event.get("index"), block.get("id"), block.get("name"), None)
            append_text(text, block.get("text"))
            append_text(reasoning, block.get("thinking"))
        elif kind == "content_block_delta":
            delta = mapping(event.get("delta"))
            append_text(text, delta.get("text"))
            append_text(reasoning, delta.get("thinking"))
            if delta.get("type") == "input_json_delta":
                calls.add(event.get("index"), None, None, delta.get("partial_json"))
        elif kind == "message_delta":
            finish_reason = text_or_none(mapping(event.get("delta")).get("stop_reason")) or finish_reason
    # Clients parse the streamed argument text and send the object back, so its bytes are not kept.
    return Reply("".join(text), "".join(reasoning), calls.joined(reserialised=True), finish_reason, response_id)


def _generate_json(body: Mapping[str, Any]) -> Reply:
    meta = mapping(body.get("meta_info"))
    reason = meta.get("finish_reason")
    return Reply(
        text_or_none(body.get("text")) or "",
        finish_reason=text_or_none(mapping(reason).get("type")) or text_or_none(reason),
        response_id=text_or_none(meta.get("id")),
        token_ids=_token_ids(body.get("output_ids")),
    )


def _generate_sse(data: bytes) -> Reply:
    pieces = [_generate_json(event) for _, event in _unrepeated(data)]
    if not pieces:
        return Reply()
    ids = tuple(token for piece in pieces for token in piece.token_ids or ())
    text = "".join(piece.text for piece in pieces)
    return Reply(text, "", (), pieces[-1].finish_reason, pieces[-1].response_id, ids or None)


def _unrepeated(data: bytes) -> list[tuple[bytes, Mapping[str, Any]]]:
    """Lines and events of the first choice, from the last one on that repeats all before it.

    By default every event of /generate does; with ``--incremental-streaming-output`` only the first.
    """
    kept: list[tuple[bytes, Mapping[str, Any]]] = []
    previous = ""
    for line, event in stream_lines(data):
        if event.get("index", 0) in (0, None):
            ids, text = _token_ids(event.get("output_ids")), text_or_none(event.get("text")) or ""
            num_generated = mapping(event.get("meta_info")).get("completion_tokens")
            if len(ids) == num_generated if ids else text.startswith(previous):
                kept.clear()
            kept.append((line, event))
            previous = text
    return kept


def _first_choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping) and choice.get("index", 0) in (0, None):
            return choice
    return {}


def _id(body: Mapping[str, Any]) -> str | None:
    return text_or_none(body.get("id"))


def _token_ids(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        return None
    return tuple(value)


_JSON_READERS: Final[dict[Api, Callable[[Mapping[str, Any]], Reply]]] = {
    "chat": _chat_json,
    "completions": _completions_json,
    "responses": _responses_json,
    "anthropic": _anthropic_json,
    "generate": _generate_json,
}
_SSE_READERS: Final[dict[Api, Callable[[Iterator[Mapping[str, Any]]], Reply]]] = {
    "chat": _chat_sse,
    "completions": _completions_sse,
    "responses": _responses_sse,
    "anthropic": _anthropic_sse,
}
