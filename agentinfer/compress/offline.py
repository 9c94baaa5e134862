"""A recorded session through the job machine as if it were live: what would have been sent, turn by turn.

The machine is the one that serves, so plans, swaps and compositions are those of a live session whose notes take as
many turns as the caller says, and whose cache is warmed while a tool runs. Recorded replies stay as they are: an agent
with a shorter memory might have said something else, which no recording can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentinfer.compress.assignment import assignment_of
from agentinfer.compress.composition import Composition
from agentinfer.compress.distiller import Assignment
from agentinfer.compress.job import Command, CompressionJob, Distil, Ended, Warm
from agentinfer.compress.note import Note
from agentinfer.compress.plan import Plan
from agentinfer.compress.settings import Settings
from agentinfer.messages import MAX_MESSAGES, Conversation, Message
from agentinfer.messages.content import chat_message

Notes = Callable[[Assignment], Note]
CountTokens = Callable[[Sequence[Mapping[str, Any]]], int]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A recorded turn: the client's whole history and the reply, as OpenAI chat messages."""

    prompt: tuple[Mapping[str, Any], ...]
    reply: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StartedJob:
    """T0: what the job that began behind a turn is to do."""

    job: int
    plan: Plan
    assignment: Assignment = field(repr=False)


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """One turn as the server would have sent it.

    `sent` is the prompt, composed where `active` is not None; `is_swap` marks the first turn of a composition. Behind
    the turn: `started` (T0), `note` (T1) and `warmed`, each the messages whose KV the background computed, and `ended`.
    """

    index: int
    prompt: tuple[Mapping[str, Any], ...] = field(repr=False)
    sent: tuple[Mapping[str, Any], ...] = field(repr=False)
    reply: Mapping[str, Any] = field(repr=False)
    active: Composition | None
    is_swap: bool
    started: StartedJob | None = None
    note: Note | None = None
    warmed: tuple[tuple[Mapping[str, Any], ...], ...] = field(default=(), repr=False)
    ended: tuple[Ended, ...] = ()


def compress_session(
    exchanges: Sequence[Exchange],
    notes: Notes,
    settings: Settings,
    note_turns: int = 1,
    count_tokens: CountTokens | None = None,
) -> tuple[TurnOutcome, ...]:
    """What would happen to a recorded session.

    `notes` makes the notes; an exception from it fails that job only. A note asked for behind turn n is there behind
    turn n + `note_turns`, and the turn after that may swap. `count_tokens` is what the engine would count in a prompt;
    without it the machine's own estimate serves.
    """
    session = _Session(notes, settings, note_turns, count_tokens)
    return tuple(session.turn(index, exchange) for index, exchange in enumerate(exchanges))


class _Session:
    def __init__(self, notes: Notes, settings: Settings, note_turns: int, count_tokens: CountTokens | None) -> None:
        self._job = CompressionJob(settings)
        self._notes, self._note_turns, self._count = notes, note_turns, count_tokens
        self._active: Composition | None = None
        self._known: dict[int, tuple[Mapping[str, Any], Message]] = {}
        self._due: tuple[int, Distil, Assignment] | None = None  # the turn behind which the note is there

    def turn(self, index: int, exchange: Exchange) -> TurnOutcome:
        messages = exchange.prompt
        if not 0 < len(messages) <= MAX_MESSAGES:  # such a history is not followed: it goes on as it came
            return TurnOutcome(index, messages, messages, exchange.reply, None, False)
        conversation = Conversation("chat", tuple(map(self._read, messages)))
        fresh, begun = self._job.turn_begins(conversation, 0.0)
        self._active = fresh or self._active
        active = self._active if self._active and self._active.applies_to(conversation.chain) else None
        sent = messages if active is None else tuple(active.applied(messages))
        reply = self._read(exchange.reply)
        commands = [*begun, *self._job.turn_ended(conversation, reply, self._tokens(sent), active, 0.0)]
        started = self._started(index, commands)
        note, noted = self._note_if_due(index, (*conversation.messages, reply))
        commands += noted
        return TurnOutcome(
            index=index,
            prompt=exchange.prompt,
            sent=sent,
            reply=exchange.reply,
            active=active,
            is_swap=fresh is not None,
            started=started,
            note=note,
            warmed=tuple(self._warmed(each) for each in commands if isinstance(each, Warm)),
            ended=tuple(each for each in commands if isinstance(each, Ended)),
        )

    def _read(self, raw: Mapping[str, Any]) -> Message:
        """A session's turns share messages, which are read and digested once."""
        if id(raw) not in self._known:
            self._known[id(raw)] = (raw, chat_message(raw))
        return self._known[id(raw)][1]

    def _tokens(self, sent: Sequence[Mapping[str, Any]]) -> int:
        if self._count is not None:
            return self._count(sent)
        return self._job.sizes.messages(map(chat_message, sent))

    def _started(self, index: int, commands: Sequence[Command]) -> StartedJob | None:
        for command in commands:
            if isinstance(command, Distil):
                assignment = assignment_of(command.plan, command.messages, self._job.sizes.tokens_per_char)
                self._due = (index + self._note_turns, command, assignment)
                return StartedJob(command.job, command.plan, assignment)
        return None

    def _note_if_due(self, index: int, history: Sequence[Message]) -> tuple[Note | None, list[Command]]:
        if self._due is None or index < self._due[0]:
            return None, []
        _, command, assignment = self._due
        self._due = None
        try:
            note = self._notes(assignment)
        except Exception as error:  # a distiller may fail in any way; the session then goes on as it was
            return None, self._job.failed(command.job, f"{type(error).__name__}: {error}")
        return note, self._job.noted(command.job, note, history, 0.0)

    def _warmed(self, command: Warm) -> tuple[Mapping[str, Any], ...]:
        self._job.warmed(command.job, len(command.messages))
        return tuple(message for message in command.messages if isinstance(message, Mapping))
