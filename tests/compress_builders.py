"""Agent histories for the tests of compression, and the rule that every composed context must keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentinfer.compress.composition import Composition
from agentinfer.compress.job import CompressionJob, Distil, Warm
from agentinfer.compress.memory import Observation
from agentinfer.compress.note import Line, Note
from agentinfer.compress.settings import Settings
from agentinfer.messages import Conversation, Message
from tests.agent_sessions import SYSTEM, Body, assistant, call, chat, tool, user

TASK = user("Find out why the nightly build of module parser fails, and mend it.")

SMALL = Settings(threshold_tokens=200, keep_recent_steps=1, min_observation_tokens=10, note_tokens_min=8)


def step(number: int, result: str | None = None, name: str = "bash", **arguments: Any) -> list[Body]:
    """An assistant message with one call, and its result."""
    text = result if result is not None else f"result {number}: " + "some line of output\n" * 20
    return [
        assistant(f"Thought {number}.", call(f"c{number}", name, **(arguments or {"n": number}))),
        tool(f"c{number}", text),
    ]


def history(num_steps: int) -> list[Body]:
    return [SYSTEM, TASK, *(message for number in range(num_steps) for message in step(number))]


def messages_of(bodies: Sequence[Body]) -> tuple[Message, ...]:
    return chat(*bodies).messages


def note_for(taken: Sequence[Observation]) -> Note:
    return Note(tuple(Line(each.text[:12], each.index) for each in taken))


class Play:
    """A client and a job: each turn sends the whole history, as clients do."""

    def __init__(self, settings: Settings = SMALL) -> None:
        self.job = CompressionJob(settings)
        self.active: Composition | None = None
        self.now_s = 0.0
        self.commands: list[Any] = []

    def turn(self, bodies: Sequence[Body], reply: Body) -> list[Body]:
        """What the engine is sent; afterwards `commands` are those of the turn."""
        conversation = chat(*bodies)
        swapped, begun = self.job.turn_begins(conversation, self.now_s)
        self.active = swapped or self.active
        applies = self.active is not None and self.active.applies_to(conversation.chain)
        active = self.active if applies else None
        sent = list(bodies) if active is None else active.applied(bodies)
        if active is not None:
            assert_nothing_lost(bodies, sent, active)
        tokens = self.job.sizes.messages(chat(*sent).messages)
        ended = self.job.turn_ended(conversation, messages_of([reply])[0], tokens, active, self.now_s)
        self.commands = [*begun, *ended]
        return sent

    def note(self, distil: Distil, note: Note | None = None) -> list[Any]:
        made = note_for(distil.plan.taken) if note is None else note
        self.commands = self.job.noted(distil.job, made, distil.messages, self.now_s)
        return self.commands

    def warm(self, warm: Warm) -> None:
        self.commands = self.job.warmed(warm.job, len(warm.messages))


def assert_nothing_lost(own: Sequence[Body], sent: Sequence[Body], composition: Composition) -> None:
    """Every message of the client is there, in its order and word for word, but for the text of results that were taken
    out, each of which is kept; the only messages more are the notes."""
    notes = [note.text() for note in composition.notes]
    rest = list(sent)
    for index, message in enumerate(own):
        while rest[0] != message and rest[0].get("role") == "assistant" and rest[0]["content"] in notes:
            rest.pop(0)
        found = rest.pop(0)
        if index in composition.taken:
            assert composition.taken[index].text == message["content"]
            assert found == {**message, "content": f"[o{index}]"}
        else:
            assert found == message, f"message {index} changed"
    assert not rest or [each["content"] for each in rest] == notes[-len(rest) :]
    _assert_calls_are_answered(sent)


def _assert_calls_are_answered(sent: Sequence[Body]) -> None:
    conversation = Conversation.from_body("/v1/chat/completions", {"messages": list(sent)})
    assert conversation is not None
    called = [call.id for message in conversation.messages for call in message.tool_calls]
    answered = [message.tool_call_id for message in conversation.messages if message.role == "tool"]
    assert sorted(filter(None, answered)) == sorted(filter(None, called))[: len(answered)] or set(answered) <= set(
        called
    )
