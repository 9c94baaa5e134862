"""The first difference between a session's two turns: which message, and of what kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from agentinfer.messages import DIGEST_BYTES, Conversation, Message
from agentinfer.prefix_doctor.causes import Cause
from agentinfer.sessions import TurnSnapshot

BOUNDARY_TOKENS: Final = 16
"""Losses up to this many tokens come from text that tokenises differently at the seam, not from an evicted prefix."""


@dataclass(frozen=True, slots=True)
class Change:
    """The first difference between two turns. A side without a message is None."""

    cause: Cause
    index: int | None = None
    before: Message | None = None
    now: Message | None = None


def first_change(previous: TurnSnapshot, conversation: Conversation) -> Change | None:
    """What in the request differs from what the previous turn left; None when nothing does, or it cannot be told."""
    if previous.is_partial or conversation.previous_response_id is not None:
        return None
    if previous.is_prompt or conversation.prompt is not None:
        return _prompt_change(previous, conversation)
    messages = conversation.messages
    index = previous.num_kept_in(conversation)
    num_before = len(previous.sequence) // DIGEST_BYTES
    now = messages[index] if index < len(messages) else None
    is_head = index == 0 and now is not None and now.role in ("system", "developer")
    if previous.tools_digest != conversation.tools_digest and not is_head:
        return Change(Cause.TOOLS_CHANGED)
    if index == num_before or index == len(messages) == previous.num_messages:
        return None
    before = _message_at(previous, index)
    if now is None:
        return Change(Cause.MESSAGE_REMOVED, index, before)
    if is_head:
        return Change(Cause.SYSTEM_CHANGED, index, before, now)
    if before is not None and _is_reserialised(before, now):
        return Change(Cause.TOOL_CALL_RESERIALISED, index, before, now)
    if index == previous.num_messages and now.role == "assistant":
        return Change(Cause.REPLY_EDITED, index, before, now)
    if _occurs_later(previous.sequence, index, now.digest):
        return Change(Cause.MESSAGE_REMOVED, index, before, now)
    return Change(Cause.MESSAGE_EDITED, index, before, now)


def without_change(
    previous: TurnSnapshot, conversation: Conversation, lost: int, cached_tokens: int, page_size: int
) -> Change:
    """Why `lost` tokens were computed again although the request repeats the previous turn."""
    usage, index = previous.usage, previous.num_messages
    if usage is None or (cached_tokens < usage.prompt_tokens - page_size and lost > max(BOUNDARY_TOKENS, page_size)):
        return Change(Cause.EVICTED)
    sent_back = conversation.messages[index] if index < len(conversation.messages) else None
    reasoned = previous.reply is not None and previous.reply.reasoning_text != ""
    if previous.reply is not None and reasoned and sent_back is not None and not sent_back.reasoning_text:
        return Change(Cause.REPLY_EDITED, index, previous.reply.message)
    return Change(Cause.TOKENISATION, index if sent_back is not None else None)


def _prompt_change(previous: TurnSnapshot, conversation: Conversation) -> Change | None:
    if previous.messages is None or previous.reply is None or not conversation.messages:
        return None
    before, now = previous.messages[0], conversation.messages[0]
    if not now.text.startswith(before.text):
        return Change(Cause.MESSAGE_EDITED, 0, before, now)
    said = previous.reply.text
    continued = Message(before.role, said if conversation.echo else before.text + said)
    if not now.text.startswith(continued.text) and len(now.text) > len(before.text):
        return Change(Cause.REPLY_EDITED, 0, continued, now)
    return None


def _message_at(previous: TurnSnapshot, index: int) -> Message | None:
    if previous.messages is None or previous.reply is None:
        return None
    return previous.messages[index] if index < previous.num_messages else previous.reply.message


def _is_reserialised(before: Message, now: Message) -> bool:
    if before.text != now.text or not before.tool_calls or len(before.tool_calls) != len(now.tool_calls):
        return False
    try:
        return all(
            (ours.id, ours.name) == (theirs.id, theirs.name)
            and orjson.loads(ours.arguments_text) == orjson.loads(theirs.arguments_text)
            for ours, theirs in zip(before.tool_calls, now.tool_calls, strict=True)
        )
    except orjson.JSONDecodeError:
        return False


def _occurs_later(sequence: bytes, index: int, digest: bytes) -> bool:
    starts = range((index + 1) * DIGEST_BYTES, len(sequence), DIGEST_BYTES)
    return any(sequence.startswith(digest, start) for start in starts)
