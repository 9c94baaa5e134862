"""Recorded sessions, compressed: the figures of each turn and session, as `agentinfer compress` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentinfer.commands.compress.tokens import PromptTokens
from agentinfer.compress.memory import observation_id
from agentinfer.compress.offline import Exchange, Notes, TurnOutcome, compress_session
from agentinfer.compress.settings import Settings
from agentinfer.replay.session import Session


@dataclass(frozen=True, slots=True)
class TurnFigures:
    """`tokens_before` and `tokens_after` are prompt tokens of the client's history and of what would be sent.

    `computed_tokens`: of a swap turn's prompt, what no earlier prompt, reply or background prefill begins with.
    """

    turn: int
    tokens_before: int
    tokens_after: int
    is_swap: bool
    computed_tokens: int | None
    outcome: TurnOutcome = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The turn as a record; no texts but the notes'."""
        found: dict[str, Any] = {
            "turn": self.turn,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
        }
        if self.is_swap:
            found["swapped"] = {"computed_tokens": self.computed_tokens, "warm_share": self.warm_share}
        started = self.outcome.started
        if started is not None:
            found["started"] = {
                "job": started.job,
                "covers_messages": started.plan.covers,
                "taken": [each.id for each in started.plan.taken],
                "saved_tokens_planned": started.plan.saved_tokens,
            }
        if self.outcome.note is not None:
            found["note"] = self.outcome.note.to_json()
        failed = [{"how": each.how, "why": each.why} for each in self.outcome.ended if each.how != "swapped"]
        if failed:
            found["ended"] = failed
        return found

    @property
    def warm_share(self) -> float | None:
        """Of a swap turn's prompt, what is in the cache when it begins."""
        if self.computed_tokens is None:
            return None
        return 1.0 - self.computed_tokens / self.tokens_after


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """A session's turns. The sums are over all turns, as a client pays for them."""

    id: str
    turns: tuple[TurnFigures, ...]

    @property
    def swaps(self) -> int:
        return sum(turn.is_swap for turn in self.turns)

    @property
    def tokens_before(self) -> int:
        return sum(turn.tokens_before for turn in self.turns)

    @property
    def tokens_after(self) -> int:
        return sum(turn.tokens_after for turn in self.turns)

    def to_json(self) -> dict[str, Any]:
        last = self.turns[-1]
        taken = last.outcome.active.taken if last.outcome.active is not None else {}
        return {
            "session": self.id,
            "swaps": self.swaps,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "last_prompt_before": last.tokens_before,
            "last_prompt_after": last.tokens_after,
            "taken": [observation_id(index) for index in sorted(taken)],
            "turns": [turn.to_json() for turn in self.turns],
        }


def compressed(
    session: Session, notes: Notes, settings: Settings, counter: PromptTokens, note_turns: int = 1
) -> SessionFigures:
    """The session with compression on, counted."""
    tools = session.tool_schemas
    exchanges = [Exchange(turn.prompt, turn.reply) for turn in session.turns]
    outcomes = compress_session(
        exchanges, notes, settings, note_turns, count_tokens=lambda messages: counter.prompt(messages, tools)
    )
    cache = PrefixCache()
    turns = []
    for outcome in outcomes:
        segments = counter.segments([*outcome.sent, outcome.reply], tools)
        prompt = segments[:-1]
        after = sum(each.num_tokens for each in prompt) + counter.reply_tokens
        computed = after - cache.cached_tokens([(each.key, each.num_tokens) for each in prompt])
        cache.add([each.key for each in segments])
        for messages in outcome.warmed:
            cache.add([each.key for each in counter.segments(messages, tools)])
        turns.append(
            TurnFigures(
                turn=outcome.index,
                tokens_before=counter.prompt(outcome.prompt, tools),
                tokens_after=after,
                is_swap=outcome.is_swap,
                computed_tokens=computed if outcome.is_swap else None,
                outcome=outcome,
            )
        )
    return SessionFigures(session.id, tuple(turns))


class PrefixCache:
    """An ideal prefix cache of one session, whole messages only: nothing is ever evicted."""

    def __init__(self) -> None:
        self._links: dict[tuple[int, bytes], int] = {}

    def add(self, keys: Sequence[bytes]) -> None:
        """A context whose KV was computed, as the keys of its messages."""
        link = 0
        for key in keys:
            link = self._links.setdefault((link, key), len(self._links) + 1)

    def cached_tokens(self, parts: Sequence[tuple[bytes, int]]) -> int:
        """Tokens of the longest known beginning of a prompt given as (key, tokens) of its messages."""
        link, total = 0, 0
        for key, num_tokens in parts:
            following = self._links.get((link, key))
            if following is None:
                break
            link, total = following, total + num_tokens
        return total
