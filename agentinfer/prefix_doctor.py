"""Why a session's turn missed its prefix: what changed since the turn before, where, and what to do about it.

Works on what the client sent and what the engine counted, so it names the message and the characters, which the
engine's cache, seeing token ids only, cannot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson

from agentinfer.messages import DIGEST_BYTES, Conversation, Message
from agentinfer.sessions import TurnSnapshot

CONTEXT_CHARS: Final = 40
BOUNDARY_TOKENS: Final = 16
"""Losses up to this many tokens come from text that tokenises differently at the seam, not from an evicted prefix."""


class Cause(StrEnum):
    """Why tokens that could have been cached were not. `HIT` and `FIRST_TURN` are no misses."""

    HIT = "hit"
    FIRST_TURN = "first_turn"
    SYSTEM_CHANGED = "system_changed"
    TOOLS_CHANGED = "tools_changed"
    MESSAGE_EDITED = "message_edited"
    MESSAGE_REMOVED = "message_removed"
    TOOL_CALL_RESERIALISED = "tool_call_reserialised"
    REPLY_EDITED = "reply_edited"
    EVICTED = "evicted"
    TOKENISATION = "tokenisation"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The verdict on one turn.

    `tokens_expected` is what the previous turn left in the cache for this prompt, None when that is unknown;
    `tokens_lost` of them were computed again. `message_index` and `role` name the first message that differs, `before`
    and `now` show it around the first differing character (escaped), where the texts are still known.
    """

    cause: Cause
    tokens_expected: int | None = None
    tokens_lost: int = 0
    message_index: int | None = None
    role: str | None = None
    before: str | None = None
    now: str | None = None
    looks_like: str | None = None
    advice: str = ""

    @property
    def is_miss(self) -> bool:
        """True when a prefix that could have been cached was computed again."""
        return self.cause not in (Cause.HIT, Cause.FIRST_TURN)

    def as_dict(self) -> dict[str, Any]:
        """The diagnosis as a JSON object, without what is absent."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in fields.items() if value not in (None, "")}

    def __str__(self) -> str:
        """One line for the log."""
        if not self.is_miss:
            return f"prefix {self.cause.replace('_', ' ')}"
        line = f"prefix miss: {self.cause.replace('_', ' ')}"
        if self.message_index is not None:
            line += f" at message {self.message_index}" + (f" ({self.role})" if self.role else "")
        if self.tokens_expected is not None:
            line += f", {self.tokens_lost} of {self.tokens_expected} cached tokens lost"
        if self.before is not None and self.now is not None:
            line += f"; was «{self.before}», now «{self.now}»"
        if self.looks_like:
            line += f", looks like a {self.looks_like}"
        return f"{line}. {self.advice}" if self.advice else line


@dataclass(frozen=True, slots=True)
class _Change:
    """The first difference between two turns. A side without a message is None."""

    cause: Cause
    index: int | None = None
    before: Message | None = None
    now: Message | None = None


def diagnose(
    previous: TurnSnapshot | None,
    conversation: Conversation,
    prompt_tokens: int,
    cached_tokens: int,
    page_size: int = 1,
) -> Diagnosis:
    """Say whether a turn found the prefix that the session's previous turn left, and if not, why.

    `prompt_tokens` and `cached_tokens` are the engine's count for this turn, `page_size` its cache's page in tokens.
    """
    if previous is None:
        return Diagnosis(Cause.FIRST_TURN)
    expected = _expected_tokens(previous, prompt_tokens, page_size)
    lost = max(0, expected - cached_tokens) if expected is not None else 0
    if lost == 0 and (expected is not None or cached_tokens > 0):
        return Diagnosis(Cause.HIT, expected)
    change = _first_change(previous, conversation)
    if change is None:
        change = _without_change(previous, conversation, lost, cached_tokens, page_size)
    before = now = looks_like = None
    if change.before is not None and change.now is not None:
        ours, theirs = _visible(change.before), _visible(change.now)
        at = _first_difference(ours, theirs)
        before, now, looks_like = _around(ours, at), _around(theirs, at), _kind_of_difference(ours, theirs, at)
    shown = change.now or change.before
    return Diagnosis(
        cause=change.cause,
        tokens_expected=expected,
        tokens_lost=lost,
        message_index=change.index,
        role=shown.role if shown is not None else None,
        before=before,
        now=now,
        looks_like=looks_like,
        advice=_advice(change, looks_like),
    )


def _expected_tokens(previous: TurnSnapshot, prompt_tokens: int, page_size: int) -> int | None:
    usage = previous.usage
    if usage is None:
        return None
    # The last token of a reply is never run through the model, and the last token of a prompt always is.
    left = usage.prompt_tokens + max(0, usage.completion_tokens - 1)
    return max(0, min(left, prompt_tokens - 1)) // page_size * page_size


def _first_change(previous: TurnSnapshot, conversation: Conversation) -> _Change | None:
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
        return _Change(Cause.TOOLS_CHANGED)
    if index == num_before or index == len(messages) == previous.num_messages:
        return None
    before = _message_at(previous, index)
    if now is None:
        return _Change(Cause.MESSAGE_REMOVED, index, before)
    if is_head:
        return _Change(Cause.SYSTEM_CHANGED, index, before, now)
    if before is not None and _is_reserialised(before, now):
        return _Change(Cause.TOOL_CALL_RESERIALISED, index, before, now)
    if index == previous.num_messages and now.role == "assistant":
        return _Change(Cause.REPLY_EDITED, index, before, now)
    if _occurs_later(previous.sequence, index, now.digest):
        return _Change(Cause.MESSAGE_REMOVED, index, before, now)
    return _Change(Cause.MESSAGE_EDITED, index, before, now)


def _prompt_change(previous: TurnSnapshot, conversation: Conversation) -> _Change | None:
    if previous.messages is None or previous.reply is None or not conversation.messages:
        return None
    before, now = previous.messages[0], conversation.messages[0]
    if not now.text.startswith(before.text):
        return _Change(Cause.MESSAGE_EDITED, 0, before, now)
    said = previous.reply.text
    continued = Message(before.role, said if conversation.echo else before.text + said)
    if not now.text.startswith(continued.text) and len(now.text) > len(before.text):
        return _Change(Cause.REPLY_EDITED, 0, continued, now)
    return None


def _without_change(
    previous: TurnSnapshot, conversation: Conversation, lost: int, cached_tokens: int, page_size: int
) -> _Change:
    usage, index = previous.usage, previous.num_messages
    if usage is None or (cached_tokens < usage.prompt_tokens - page_size and lost > max(BOUNDARY_TOKENS, page_size)):
        return _Change(Cause.EVICTED)
    sent_back = conversation.messages[index] if index < len(conversation.messages) else None
    reasoned = previous.reply is not None and previous.reply.reasoning_text != ""
    if previous.reply is not None and reasoned and sent_back is not None and not sent_back.reasoning_text:
        return _Change(Cause.REPLY_EDITED, index, previous.reply.message)
    return _Change(Cause.TOKENISATION, index if sent_back is not None else None)


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


def _visible(message: Message) -> str:
    """The message's text and tool calls as one string to compare."""
    calls = "".join(f"\n[{call.id or ''}] {call.name}({call.arguments_text})" for call in message.tool_calls)
    return message.text + calls


def _first_difference(ours: str, theirs: str) -> int:
    """The length of the common prefix. Slices compare at the speed of memcmp, so halve instead of walking."""
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _around(text: str, at: int) -> str:
    start, end = max(0, at - CONTEXT_CHARS), at + CONTEXT_CHARS
    shown = repr(text[start:end])[1:-1]
    return ("…" if start else "") + shown + ("…" if end < len(text) else "")


def _kind_of_difference(ours: str, theirs: str, at: int) -> str | None:
    for kind, pattern in _KINDS:
        if _spans(pattern, ours, at) and _spans(pattern, theirs, at):
            return kind
    return None


def _spans(pattern: re.Pattern[str], text: str, at: int) -> bool:
    start = max(0, at - CONTEXT_CHARS)
    window = text[start : at + CONTEXT_CHARS]
    return any(match.start() <= at - start <= match.end() for match in pattern.finditer(window))


def _advice(change: _Change, looks_like: str | None) -> str:
    if looks_like is not None and change.cause in (Cause.SYSTEM_CHANGED, Cause.MESSAGE_EDITED):
        return f"Keep the {looks_like} out of what is sent every turn, or move it to the end of the last message."
    if change.cause is Cause.REPLY_EDITED and change.now is None:
        return "Send reasoning_content back with the reply, if the model's chat template keeps it."
    return _ADVICE[change.cause]


_ADVICE: Final = {
    Cause.SYSTEM_CHANGED: "Keep the system message the same in every turn of a session.",
    Cause.TOOLS_CHANGED: "Send the same tools in the same order in every turn of a session.",
    Cause.MESSAGE_EDITED: "Append messages instead of editing those already sent.",
    Cause.MESSAGE_REMOVED: "Remove old messages seldom and many at once; each removal computes all that follows again.",
    Cause.TOOL_CALL_RESERIALISED: "Send tool call arguments back as the exact string of the reply.",
    Cause.REPLY_EDITED: "Send the reply back exactly as it was received.",
    Cause.EVICTED: "The cache needed the room: run fewer sessions at once or give the cache more memory.",
    Cause.TOKENISATION: "The reply tokenises differently when it is sent back; only its own tokens are affected.",
}

_KINDS: Final = (
    ("uuid", re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|\b(?=\w*[a-f])[0-9a-f]{16,64}\b")),
    (
        "timestamp",
        re.compile(
            r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"
            r"|\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?: ?[AaPp][Mm])?"
            r"|\d{1,2}[./]\d{1,2}[./]\d{2,4}"
            r"|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,? (?:\d{1,2} \w{3,9}|\w{3,9} \d{1,2})"
            r"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* \d{1,2}(?:, \d{4})?"
            r"|\b1[0-9]{9}(?:\d{3}|\.\d+)?\b"
        ),
    ),
    ("counter", re.compile(r"\b\d+\b")),
)
