"""What goes over the wire for a turn: the chat request, and the recorded reply as text for the engine to emit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from agentinfer.replay.session import Message, Session, Turn, text_of


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """How requests are made. `max_tokens` and `temperature` bind free replies only; forced ones end where recorded."""

    model: str
    forced: bool
    send_hints: bool
    max_tokens: int
    temperature: float


def reply_text(reply: Mapping[str, Any]) -> str:
    """The reply as a chat template with hermes tool calls renders it: content, then a `<tool_call>` block a call.

    The next turn's prompt renders the same message; only when both texts are equal does it extend the emitted tokens.
    Argument text is parsed and written again as SGLang (orjson) and transformers' `tojson` filter do for the template.
    """
    blocks = []
    for call in reply.get("tool_calls", ()):
        name = json.dumps(call["function"]["name"], ensure_ascii=False)
        arguments = json.dumps(orjson.loads(call["function"]["arguments"]), ensure_ascii=False)
        blocks.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return "\n".join([part for part in (text_of(reply),) if part] + blocks)


def request_body(
    session: Session, turn: Turn, wire_id: str, options: RequestOptions, parent_wire_id: str | None = None
) -> dict[str, Any]:
    """A streaming chat completion request. Wire ids are the sessions' ids on the server, unique to this replay."""
    body: dict[str, Any] = {
        "model": options.model,
        "messages": list(turn.prompt),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": options.temperature,
    }
    if session.tool_schemas:
        body["tools"] = list(session.tool_schemas)
    if not options.forced:
        body["max_tokens"] = options.max_tokens
    hints: dict[str, Any] = {}
    if options.send_hints:
        hints = {"session": wire_id, "turn": turn.index, "last": turn is session.turns[-1]}
        if parent_wire_id is not None:
            hints["parent"] = parent_wire_id
        if turn.tools:
            hints["tool"] = turn.tools[0][:128]
    if options.forced:
        hints["forced"] = {"text": reply_text(turn.reply)}
    if hints:
        body["agentinfer"] = hints
    return body


def inline_reasoning(session: Session) -> Session:
    """Recorded reasoning as `<think>` text of the reply: it is emitted, and stays in the history, as content."""

    def inlined(message: Message) -> Message:
        if not message.get("reasoning_content"):
            return message
        rest = {key: value for key, value in message.items() if key != "reasoning_content"}
        return {**rest, "content": f"<think>\n{message['reasoning_content']}\n</think>\n\n{text_of(message)}"}

    return map_messages(session, inlined)


def map_messages(session: Session, change: Callable[[Message], Message]) -> Session:
    """The session with `change` applied to each message, once a message, so that turns go on sharing them."""
    changed: dict[int, Message] = {}

    def once(message: Message) -> Message:
        key = id(message)
        if key not in changed:
            changed[key] = change(message)
        return changed[key]

    turns = tuple(replace(t, prompt=tuple(once(m) for m in t.prompt), reply=once(t.reply)) for t in session.turns)
    return replace(session, turns=turns)
