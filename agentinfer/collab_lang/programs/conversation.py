"""What a program has written so far, as messages: the form from which each model's own prompt is made.

SGLang's interpreter keeps a program twice: as text with one guessed chat template, and as messages. Only the messages
are the same for both models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sglang.lang.chat_template import ChatTemplate
from sglang.lang.interpreter import StreamExecutor

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """A program's text at one moment: `messages` that are closed, then `begun`, what there is of the next one.

    `role` is whose that one is. None: the program has no messages at all and `begun` is its whole text.
    """

    messages: tuple[Message, ...]
    role: str | None
    begun: str

    @property
    def is_plain_text(self) -> bool:
        return self.role is None

    def followed_by(self, role: str, content: str) -> Written:
        """The same with what is begun as a closed message, and another one after it; a reply may follow."""
        if self.role is None:
            return replace(self, begun=f"{self.begun}\n\n{content}\n")
        closed = {"role": self.role, "content": self.begun.lstrip()}
        return Written((*self.messages, closed, {"role": role, "content": content}), "assistant", "")


@dataclass(frozen=True, slots=True)
class Place:
    """Which message is being written; None in both where text has no messages, so no two places of it are one."""

    index: int | None
    begins_at: int | None


def place(s: StreamExecutor) -> Place:
    """Where `s` writes now."""
    if s.cur_role is None:
        return Place(None, None)
    return Place(len(s.messages_), s.cur_role_begin_pos)


def written(s: StreamExecutor) -> Written:
    """What `s` has written. Text after the last message begins one of the assistant, who is about to speak."""
    if s.cur_role is not None:
        return Written(tuple(s.messages_), s.cur_role, s.text_[s.cur_role_begin_pos :])
    if not s.messages_:
        return Written((), None, s.text_)
    return Written(tuple(s.messages_), "assistant", _text_after_messages(s))


def message_at(s: StreamExecutor, where: Place) -> Written:
    """What `s` had written by the end of the message at `where`, or has by now where it is still open."""
    if where.index is None or where.index >= len(s.messages_):
        return written(s)
    message = s.messages_[where.index]
    return Written(tuple(s.messages_[: where.index]), message["role"], message["content"])


def has_loose_text(s: StreamExecutor) -> bool:
    """Whether there is text between or before messages, which no chat template has a place for."""
    at = 0
    for index, message in enumerate(s.messages_):
        content = message["content"]
        if not isinstance(content, str):
            return False
        prefix, suffix = _frame(s, message["role"], s.messages_[:index])
        found = s.text_.find(prefix, at)
        if found < 0 or s.text_[at:found].strip():
            return True
        begins = s.text_.find(content, found + len(prefix))
        at = begins + len(content) + len(suffix)
    if s.cur_role is None:
        return False
    prefix, _ = _frame(s, s.cur_role, s.messages_)
    return bool(s.text_[at : s.cur_role_begin_pos - len(prefix)].strip())


def _text_after_messages(s: StreamExecutor) -> str:
    last = s.messages_[-1]
    content = last["content"] if isinstance(last["content"], str) else ""
    _, suffix = _frame(s, last["role"], s.messages_[:-1])
    begins = s.text_.find(content, s.cur_role_begin_pos)
    text: str = s.text_[begins + len(content) + len(suffix) :]
    return text if text.strip() else ""


def _frame(s: StreamExecutor, role: str, before: list[Message]) -> tuple[str, str]:
    template: ChatTemplate = s.chat_template
    prefix, suffix = template.get_prefix_and_suffix(role, before)
    return prefix, suffix
