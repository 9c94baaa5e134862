"""The verdict on one turn: cause, tokens lost, the place, and advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentinfer.messages import Conversation, Message
from agentinfer.prefix_doctor.causes import ADVICE, Cause
from agentinfer.prefix_doctor.changes import Change, first_change, without_change
from agentinfer.prefix_doctor.differences import around, first_difference, kind_of_difference
from agentinfer.sessions import TurnSnapshot


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
    change = first_change(previous, conversation)
    if change is None:
        change = without_change(previous, conversation, lost, cached_tokens, page_size)
    before = now = looks_like = None
    if change.before is not None and change.now is not None:
        ours, theirs = _visible(change.before), _visible(change.now)
        at = first_difference(ours, theirs)
        before, now, looks_like = around(ours, at), around(theirs, at), kind_of_difference(ours, theirs, at)
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


def _visible(message: Message) -> str:
    """The message's text and tool calls as one string to compare."""
    calls = "".join(f"\n[{call.id or ''}] {call.name}({call.arguments_text})" for call in message.tool_calls)
    return message.text + calls


def _advice(change: Change, looks_like: str | None) -> str:
    if looks_like is not None and change.cause in (Cause.SYSTEM_CHANGED, Cause.MESSAGE_EDITED):
        return f"Keep the {looks_like} out of what is sent every turn, or move it to the end of the last message."
    if change.cause is Cause.REPLY_EDITED and change.now is None:
        return "Send reasoning_content back with the reply, if the model's chat template keeps it."
    return ADVICE[change.cause]
