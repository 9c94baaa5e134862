"""Reading an answer: the assistant's reply in a response as the client received it, whole or streamed, of five APIs.

Only the first choice is read: a session continues with one answer. Nothing here raises on malformed or truncated input;
a stream that was cut off gives what had arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import orjson

from agentinfer.messages.content import anthropic_messages, chat_message, joined_assistant, merged_output_items
from agentinfer.messages.model import Api, Message, ToolCall


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
        return _generate_sse(data) if api == "generate" else _SSE_READERS[api](_events(data))


def _chat_json(body: Mapping[str, Any]) -> Reply:
    choice = _first_choice(body)
    read = chat_message(_mapping(choice.get("message")))
    return Reply(read.text, read.reasoning_text, read.tool_calls, _text_or_none(choice.get("finish_reason")), _id(body))


def _chat_sse(events: Iterator[Mapping[str, Any]]) -> Reply:
    text: list[str] = []
    reasoning: list[str] = []
    calls = _CallParts()
    finish_reason = response_id = None
    for event in events:
        response_id = response_id or _id(event)
        choice = _first_choice(event)
        delta = _mapping(choice.get("delta"))
        _append(text, delta.get("content"))
        _append(reasoning, delta.get("reasoning_content"))
        pieces = delta.get("tool_calls")
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, Mapping):
                function = _mapping(piece.get("function"))
                calls.add(piece.get("index"), piece.get("id"), function.get("name"), function.get("arguments"))
        finish_reason = _text_or_none(choice.get("finish_reason")) or finish_reason
    return Reply("".join(text), "".join(reasoning), calls.joined(), finish_reason, response_id)


def _completions_json(body: Mapping[str, Any]) -> Reply:
    choice = _first_choice(body)
    return Reply(
        _text_or_none(choice.get("text")) or "",
        finish_reason=_text_or_none(choice.get("finish_reason")),
        response_id=_id(body),
    )


def _completions_sse(events: Iterator[Mapping[str, Any]]) -> Reply:
    text: list[str] = []
    finish_reason = response_id = None
    for event in events:
        response_id = response_id or _id(event)
        choice = _first_choice(event)
        _append(text, choice.get("text"))
        finish_reason = _text_or_none(choice.get("finish_reason")) or finish_reason
    return Reply("".join(text), finish_reason=finish_reason, response_id=response_id)


def _responses_json(body: Mapping[str, Any]) -> Reply:
    return _responses_reply(body.get("output"), _text_or_none(body.get("status")), _id(body))


def _responses_sse(events: Iterator[Mapping[str, Any]]) -> Reply:
    items: list[Any] = []
    response_id = status = None
    for event in events:
        kind = event.get("type")
        response = _mapping(event.get("response"))
        response_id = _id(response) or response_id
        if kind == "response.output_item.done":
            items.append(event.get("item"))
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            status = _text_or_none(response.get("status"))
            output = response.get("output")
            items = output if isinstance(output, list) and output else items
    return _responses_reply(items, status, response_id)


def _responses_reply(output: object, status: str | None, response_id: str | None) -> Reply:
    items = [item for item in output if isinstance(item, Mapping)] if isinstance(output, list) else []
    read = joined_assistant([message for message in merged_output_items(items) if message.role == "assistant"])
    return Reply(read.text, read.reasoning_text, read.tool_calls, status, response_id)


def _anthropic_json(body: Mapping[str, Any]) -> Reply:
    read = joined_assistant(anthropic_messages("assistant", body.get("content")))
    return Reply(read.text, read.reasoning_text, read.tool_calls, _text_or_none(body.get("stop_reason")), _id(body))


def _anthropic_sse(events: Iterator[Mapping[str, Any]]) -> Reply:
    text: list[str] = []
    reasoning: list[str] = []
    calls = _CallParts()
    finish_reason = response_id = None
    for event in events:
        kind = event.get("type")
        if kind == "message_start":
            response_id = _id(_mapping(event.get("message")))
        elif kind == "content_block_start":
            block = _mapping(event.get("content_block"))
            if block.get("type") == "tool_use":
                calls.add(event.get("index"), block.get("id"), block.get("name"), None)
            _append(text, block.get("text"))
            _append(reasoning, block.get("thinking"))
        elif kind == "content_block_delta":
            delta = _mapping(event.get("delta"))
            _append(text, delta.get("text"))
            _append(reasoning, delta.get("thinking"))
            if delta.get("type") == "input_json_delta":
                calls.add(event.get("index"), None, None, delta.get("partial_json"))
        elif kind == "message_delta":
            finish_reason = _text_or_none(_mapping(event.get("delta")).get("stop_reason")) or finish_reason
    # Clients parse the streamed argument text and send the object back, so its bytes are not kept.
    return Reply("".join(text), "".join(reasoning), calls.joined(reserialised=True), finish_reason, response_id)


def _generate_json(body: Mapping[str, Any]) -> Reply:
    meta = _mapping(body.get("meta_info"))
    reason = meta.get("finish_reason")
    return Reply(
        _text_or_none(body.get("text")) or "",
        finish_reason=_text_or_none(_mapping(reason).get("type")) or _text_or_none(reason),
        response_id=_text_or_none(meta.get("id")),
        token_ids=_token_ids(body.get("output_ids")),
    )


def _generate_sse(data: bytes) -> Reply:
    last_start = data.rfind(b'data: {"')
    final = next(_events(data[last_start:]), None) if last_start >= 0 else None
    if final is not None:
        whole = _generate_json(final)
        if whole.token_ids and len(whole.token_ids) == _num_generated(final):
            return whole  # by default every event carries all so far, so the last one is the whole answer
    text: list[str] = []
    token_ids: list[int] = []
    last = Reply()
    previous = ""
    for event in _events(data):
        last = _generate_json(event)
        ids = last.token_ids or ()
        # With --incremental-streaming-output an event carries only what is new.
        is_whole = len(ids) == _num_generated(event) if ids else last.text.startswith(previous)
        if is_whole:
            text.clear()
            token_ids.clear()
        previous = last.text
        text.append(last.text)
        token_ids.extend(ids)
    return Reply("".join(text), "", (), last.finish_reason, last.response_id, tuple(token_ids) or None)


def _num_generated(event: Mapping[str, Any]) -> object:
    return _mapping(event.get("meta_info")).get("completion_tokens")


class _CallParts:
    """Tool calls that arrive in pieces, joined by their index in the stream."""

    def __init__(self) -> None:
        self._calls: dict[object, tuple[list[str], list[str], list[str]]] = {}

    def add(self, index: object, call_id: object, name: object, arguments: object) -> None:
        key = index if isinstance(index, int) else len(self._calls)
        ids, names, texts = self._calls.setdefault(key, ([], [], []))
        if not ids:
            _append(ids, call_id)
        if not names:
            _append(names, name)
        _append(texts, arguments)

    def joined(self, reserialised: bool = False) -> tuple[ToolCall, ...]:
        calls = []
        for ids, names, texts in self._calls.values():
            arguments = "".join(texts)
            if reserialised:
                arguments = _reserialised(arguments or "{}")
            calls.append(ToolCall("".join(ids) or None, "".join(names), arguments))
        return tuple(calls)


def _events(data: bytes) -> Iterator[Mapping[str, Any]]:
    for line in data.split(b"\n"):
        if line.startswith(b"data:"):
            payload = line[5:].strip()
            if payload and payload != b"[DONE]":
                try:
                    event = orjson.loads(payload)
                except orjson.JSONDecodeError:
                    continue  # the line at which the stream was cut off
                if isinstance(event, Mapping):
                    yield event


def _reserialised(arguments: str) -> str:
    try:
        return orjson.dumps(orjson.loads(arguments)).decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return arguments


def _first_choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping) and choice.get("index", 0) in (0, None):
            return choice
    return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _id(body: Mapping[str, Any]) -> str | None:
    return _text_or_none(body.get("id"))


def _token_ids(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        return None
    return tuple(value)


def _append(parts: list[str], value: object) -> None:
    if isinstance(value, str) and value:
        parts.append(value)


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
