"""A composed context: the beginning of a client's history, said shorter, and how a request gets it in place of its own.

A composition is known by the digest of the messages that it stands for, not by its session. So it applies to whatever
request begins with exactly these messages: a client that edits its history gets its own words back, two clients on one
session cannot disturb each other, and a restarted server finds it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from agentinfer.compress.memory import Observation, observation_id
from agentinfer.compress.note import Note
from agentinfer.compress.payloads import without_payloads
from agentinfer.compress.plan import Plan
from agentinfer.compress.settings import Settings
from agentinfer.messages import EMPTY_DIGEST, Conversation, Message, chained


@dataclass(frozen=True)
class Composition:
    """What stands for the first `covers` messages of a history; `digest` is the chained digest of those.

    `messages` are OpenAI chat messages. `notes` are those in them, the latest last. `taken` are the observations that
    are not there as they were, by their place, this composition's and those it builds on.
    """

    covers: int
    digest: bytes
    messages: tuple[Mapping[str, Any], ...] = field(repr=False)
    notes: tuple[Note, ...] = field(repr=False)
    taken: Mapping[int, Observation] = field(repr=False)

    @cached_property
    def parsed(self) -> tuple[Message, ...]:
        """`messages` as the estimates of sizes take them."""
        found = Conversation.from_body("/v1/chat/completions", {"messages": list(self.messages)})
        assert found is not None, "a composition holds fewer messages than a request may"
        return found.messages

    def applies_to(self, chain: Sequence[bytes]) -> bool:
        """Whether a history with this chain of digests begins with the messages this stands for."""
        return len(chain) >= self.covers and chain[self.covers - 1] == self.digest

    def applied(self, messages: Sequence[Any]) -> list[Any]:
        """The request's messages with the beginning composed; what follows is the client's, object by object."""
        return [*self.messages, *messages[self.covers :]]

    def sent(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The same of a history's messages in our form."""
        return (*self.parsed, *messages[self.covers :])


def compose(
    messages: Sequence[Message], plan: Plan, note: Note, previous: Composition | None, settings: Settings
) -> Composition:
    """The composition that carries out `plan` on a history, on top of `previous` where there is one.

    What `previous` composed stays as it is, to the byte, so that its KV stays of use. Reasoning and calls stay word for
    word; each result that is taken away leaves its message, with its id in place of its text, and the note follows the
    last of these steps as a thought of the agent (paper, section 3.2), or its last result: see `Settings`.
    """
    begin = 0 if previous is None else previous.covers
    taken = {each.index: each for each in plan.taken}
    built: list[Mapping[str, Any]] = [] if previous is None else list(previous.messages)
    for index in range(begin, plan.covers):
        built.append(_shortened(messages[index], index, settings) if index in taken else messages[index].as_openai())
    if not note.is_empty:
        built = _with_note(built, note.text(), settings.note_is_step)
    link = EMPTY_DIGEST
    for message in messages[: plan.covers]:
        link = chained(link, message.digest)
    return Composition(
        covers=plan.covers,
        digest=link,
        messages=tuple(built),
        notes=(*(() if previous is None else previous.notes), note),
        taken={**({} if previous is None else previous.taken), **taken},
    )


def _shortened(message: Message, index: int, settings: Settings) -> Mapping[str, Any]:
    if message.role == "assistant":
        return without_payloads(message, index, settings.min_payload_chars)
    return {**message.as_openai(), "content": f"[{observation_id(index)}]"}


def _with_note(messages: Sequence[Mapping[str, Any]], text: str, is_step: bool) -> list[Mapping[str, Any]]:
    if is_step:
        return [*messages, {"role": "assistant", "content": text}]
    last = dict(messages[-1])
    content = last.get("content")
    last["content"] = f"{content}\n\n{text}" if isinstance(content, str) and content else text
    return [*messages[:-1], last]
