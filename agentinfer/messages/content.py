"""Reading messages: content fields, tool calls and items of the five APIs, each to `Message` objects. Never raises."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any, Final

from agentinfer.messages.model import Message, ToolCall, json_digest, json_text


def chat_message(item: Mapping[str, Any]) -> Message:
    text, reasoning, attachments = read_content(item.get("content"))
    explicit_reasoning = item.get("reasoning_content")
    return Message(
        role=read_role(item.get("role")),
        text=text,
        tool_calls=_chat_tool_calls(item.get("tool_calls")),
        tool_call_id=optional_text(item.get("tool_call_id")),
        reasoning_text=explicit_reasoning if isinstance(explicit_reasoning, str) else reasoning,
        attachments=attachments,
        raw=item,
    )


def _chat_tool_calls(calls: object) -> tuple[ToolCall, ...]:
    if not isinstance(calls, list):
        return ()
    found = []
    for call in calls:
        if isinstance(call, Mapping):
            function = call.get("function")
            function = function if isinstance(function, Mapping) else {}
            found.append(
                ToolCall(
                    id=optional_text(call.get("id")),
                    name=any_text(function.get("name")),
                    arguments_text=any_text(function.get("arguments")),
                )
            )
    return tuple(found)


def merged_output_items(items: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Messages of Responses API items; the items of one assistant turn (reasoning, text, calls) become one message."""
    messages: list[Message] = []
    parts: list[Message] = []

    def close_turn() -> None:
        if parts:
            messages.append(joined_assistant(parts))
            parts.clear()

    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call":
            call = ToolCall(
                id=optional_text(item.get("call_id") or item.get("id")),
                name=any_text(item.get("name")),
                arguments_text=any_text(item.get("arguments")),
            )
            parts.append(Message(role="assistant", text="", tool_calls=(call,)))
        elif kind == "function_call_output":
            close_turn()
            text, _, attachments = read_content(item.get("output"))
            messages.append(
                Message("tool", text, tool_call_id=optional_text(item.get("call_id")), attachments=attachments)
            )
        elif kind == "reasoning":
            texts = [read_content(item.get(name))[0] for name in ("content", "summary")]
            parts.append(Message(role="assistant", text="", reasoning_text=texts[0] or texts[1]))
        else:
            text, reasoning, attachments = read_content(item.get("content"))
            role = read_role(item.get("role"))
            if kind != "message":  # a built-in tool's item: kept as an opaque part of the assistant's turn
                attachments = (json_digest(item),)
                role = "assistant"
            message = Message(role, text, reasoning_text=reasoning, attachments=attachments)
            if role == "assistant":
                parts.append(message)
            else:
                close_turn()
                messages.append(message)
    close_turn()
    return messages


def joined_assistant(parts: list[Message]) -> Message:
    """One assistant message out of the pieces of its turn."""
    return Message(
        role="assistant",
        text="".join(part.text for part in parts),
        tool_calls=tuple(call for part in parts for call in part.tool_calls),
        reasoning_text="".join(part.reasoning_text for part in parts),
        attachments=tuple(attachment for part in parts for attachment in part.attachments),
    )


def anthropic_messages(role: str, content: object) -> list[Message]:
    """The messages in one Anthropic message: each tool result becomes a message of role ``tool``, in its place."""
    if not isinstance(content, list):
        text, reasoning, attachments = read_content(content)
        return [Message(role, text, reasoning_text=reasoning, attachments=attachments)]
    messages: list[Message] = []
    own_blocks: list[Any] = []
    calls: list[ToolCall] = []

    def close_own() -> None:
        text, reasoning, attachments = read_content(own_blocks)
        messages.append(Message(role, text, tuple(calls), reasoning_text=reasoning, attachments=attachments))
        own_blocks.clear()
        calls.clear()

    for block in content:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_use":
            calls.append(
                ToolCall(
                    id=optional_text(block.get("id")),
                    name=any_text(block.get("name")),
                    arguments_text=any_text(block.get("input")),
                )
            )
        elif kind == "tool_result":
            if own_blocks or calls:
                close_own()
            text, _, attachments = read_content(block.get("content"))
            answered = optional_text(block.get("tool_use_id") or block.get("id"))
            messages.append(Message("tool", text, tool_call_id=answered, attachments=attachments))
        else:
            own_blocks.append(block)
    if own_blocks or calls or not messages:
        close_own()
    return messages


def read_content(content: object) -> tuple[str, str, tuple[bytes, ...]]:
    """(text, reasoning, digests of other parts) of a content field of any API."""
    if isinstance(content, str):
        return content, "", ()
    if content is None:
        return "", "", ()
    if not isinstance(content, list):
        return "", "", (json_digest(content),)
    texts: list[str] = []
    reasoning: list[str] = []
    attachments: list[bytes] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind in ("thinking", "reasoning", "redacted_thinking"):
            thought = part.get("thinking") or text
            reasoning.append(thought if isinstance(thought, str) else "")
        elif isinstance(text, str) and kind in _TEXT_PART_TYPES:
            texts.append(text)
        else:
            attachments.append(json_digest(part))
    return "".join(texts), "".join(reasoning), tuple(attachments)


def read_role(role: object) -> str:
    return role.lower() if isinstance(role, str) else ""


def optional_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def any_text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json_text(value)


_TEXT_PART_TYPES: Final = (None, "text", "input_text", "output_text", "reasoning_text", "summary_text")


def utf8(text: str) -> bytes:
    """UTF-8 that also takes the lone surrogates JSON can carry."""
    return text.encode("utf-8", "surrogatepass")


def token_bytes(token_ids: object) -> bytes | None:
    """Token ids as packed int64; None when they are not all integers of that range."""
    if not isinstance(token_ids, list | tuple):
        return None
    try:
        return array("q", token_ids).tobytes()
    except (TypeError, OverflowError, ValueError):
        return None
