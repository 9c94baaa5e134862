"""One session's compression as a state machine: the paper's T0, T1 and T2, with no clock, no engine and no model in it.

            turn ends, worth it            note is there              KV is there
    IDLE ----------------------> DISTILLING -----------> WARMING ----------------> READY ---> IDLE, swapped
      ^   T0                       |             T1         ^  |                    |     T2: a turn begins
      |                            |                        |  +--- turn ends ------+     whose prompt is cached
      +--- failed, late, cancelled, the history changed <---+---------------------------------

The agent goes on with its old context in every state but the last arrow, and whoever runs the machine does so beside
the serving of turns: nothing here ever waits. A job that ends in any way but a swap leaves no trace. Results carry the
number of the job that they are for, so one that comes after its job has ended changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from agentinfer.compress.composition import Composition, compose
from agentinfer.compress.note import Note
from agentinfer.compress.plan import Plan, is_worth_it, make_plan
from agentinfer.compress.settings import Settings
from agentinfer.compress.sizes import Sizes
from agentinfer.messages import Conversation, Message

End = Literal["swapped", "failed", "late", "cancelled", "history_changed", "empty"]


class State(Enum):
    IDLE = "idle"
    DISTILLING = "distilling"
    WARMING = "warming"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Distil:
    """Have a note made for `plan` of `messages` (T0); answer by `noted` or `failed`."""

    job: int
    plan: Plan
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Warm:
    """Compute the KV of `messages` (OpenAI form) in the background (T1); answer by `warmed` or `failed`."""

    job: int
    messages: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The job is over. Stop what runs for it."""

    job: int
    how: End
    why: str = ""


Command = Distil | Warm | Ended


class CompressionJob:
    """A session's one job after another. Owned by whoever owns the session; not thread-safe."""

    def __init__(self, settings: Settings, sizes: Sizes | None = None) -> None:
        self._settings = settings
        self.sizes = sizes or Sizes()
        self.state = State.IDLE
        self.number = 0
        self._since_s = 0.0
        self._plan: Plan | None = None
        self._messages: tuple[Message, ...] = ()
        self._base: Composition | None = None
        self._base_tokens = 0
        self._composition: Composition | None = None
        self._warmed_messages = 0
        self._rounds = 0

    @property
    def composition(self) -> Composition | None:
        """What the job has made and not yet swapped in."""
        return self._composition

    def turn_ended(
        self,
        conversation: Conversation,
        reply: Message,
        prompt_tokens: int,
        active: Composition | None,
        now_s: float,
        kv_price: float = 0.0,
    ) -> list[Command]:
        """A turn of the session was answered. `active` is the composition that its prompt of `prompt_tokens` had.

        Starts a job (T0) where one is worth it; a job that is on takes in what the turn added.
        """
        history = (*conversation.messages, reply)
        own = conversation.messages if active is None else active.sent(conversation.messages)
        self.sizes.observe(own, prompt_tokens)
        commands = self._give_up_if_late(now_s)
        if self.state in (State.WARMING, State.READY):
            assert self._composition is not None
            if not self._composition.applies_to(conversation.chain):
                return [*commands, *self._end("history_changed", "the history no longer begins as it did")]
            return [*commands, self._warm(history, now_s)]
        if self.state is State.IDLE:
            commands += self._start(history, active, now_s, kv_price)
        return commands

    def noted(self, job: int, note: Note, history: Sequence[Message], now_s: float) -> list[Command]:
        """T1: the note of `job` is there; `history` is the session's latest, its last reply included."""
        if job != self.number or self.state is not State.DISTILLING or self._plan is None:
            return []
        if note.is_empty:
            return self._end("empty", "the note says nothing")
        self._composition = compose(self._messages, self._plan, note, self._base, self._settings)
        if not _begins_with(history, self._messages[: self._composition.covers]):
            return self._end("history_changed", "the history no longer begins as it did")
        return [self._warm(history, now_s)]

    def warmed(self, job: int, num_messages: int) -> list[Command]:
        """The KV of the first `num_messages` messages of the composed history is in the cache."""
        if job == self.number and self.state is State.WARMING and num_messages == self._warmed_messages:
            self.state = State.READY
        return []

    def progressed(self, job: int, now_s: float) -> None:
        """More of what is being computed for `job` is in the cache: it does not hang."""
        if job == self.number and self.state is State.WARMING:
            self._since_s = now_s

    def failed(self, job: int, why: str) -> list[Command]:
        """What was asked for could not be done; the session stays on its old context."""
        return self._end("failed", why) if job == self.number and self.state is not State.IDLE else []

    def cancel(self, why: str) -> list[Command]:
        """The session is over, or the feature is being turned off."""
        return self._end("cancelled", why) if self.state is not State.IDLE else []

    def turn_begins(self, conversation: Conversation, now_s: float) -> tuple[Composition | None, list[Command]]:
        """T2: the composition to swap in for this turn and all that follow, where its time has come.

        That is when all but `1 - warm_share` of the prompt is in the cache, or when as many turns have gone by as may.
        """
        commands = self._give_up_if_late(now_s)
        if self.state is not State.READY or self._composition is None:
            return None, commands
        composition = self._composition
        if not composition.applies_to(conversation.chain):
            return None, commands  # another client's turn, or a side request: the job's own client may yet come back
        sizes = [self.sizes.message(message) for message in composition.sent(conversation.messages)]
        warm = sum(sizes[: self._warmed_messages])
        self._rounds += 1
        if warm < self._settings.warm_share * sum(sizes) and self._rounds <= self._settings.max_rounds:
            return None, commands
        return composition, [*commands, *self._end("swapped")]

    def _start(
        self, history: tuple[Message, ...], active: Composition | None, now_s: float, kv_price: float
    ) -> list[Command]:
        plan = make_plan(
            history,
            self.sizes,
            self._settings,
            already_taken=active.taken if active else (),
            covered=active.covers if active else 0,
            composed_tokens=self.sizes.messages(active.parsed) if active else None,
        )
        if plan is None or not is_worth_it(plan, self._settings, kv_price):
            return []
        self.number += 1
        self.state = State.DISTILLING
        self._since_s, self._rounds = now_s, 0
        self._plan, self._messages, self._base = plan, history, active
        return [Distil(self.number, plan, history)]

    def _warm(self, history: Sequence[Message], now_s: float) -> Warm:
        assert self._composition is not None
        self.state, self._since_s = State.WARMING, now_s
        messages = self._composition.applied([message.as_openai() for message in history])
        self._warmed_messages = len(messages)
        return Warm(self.number, tuple(messages))

    def _give_up_if_late(self, now_s: float) -> list[Command]:
        waited_s = now_s - self._since_s
        if self.state is State.DISTILLING and waited_s > self._settings.distil_timeout_s:
            return self._end("late", f"no note after {self._settings.distil_timeout_s:g} s")
        if self.state is State.WARMING and waited_s > self._settings.warm_timeout_s:
            return self._end("late", f"nothing more in the cache for {self._settings.warm_timeout_s:g} s")
        return []

    def _end(self, how: End, why: str = "") -> list[Command]:
        ended = Ended(self.number, how, why)
        self.state = State.IDLE
        self._plan, self._messages, self._base, self._composition = None, (), None, None
        return [ended]


def _begins_with(history: Sequence[Message], beginning: Sequence[Message]) -> bool:
    return len(history) >= len(beginning) and all(
        ours.digest == theirs.digest for ours, theirs in zip(history, beginning, strict=False)
    )
