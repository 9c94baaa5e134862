"""Counted work of a session under each variant: what is carried, computed on and off the agent's path, and lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from agentinfer.commands.compress.sessions import PrefixCache
from agentinfer.commands.compress.tokens import PromptTokens, Segment
from agentinfer.compress.distiller import Assignment
from agentinfer.compress.extractive import ExtractiveDistiller
from agentinfer.compress.offline import Exchange, Notes
from agentinfer.compress.settings import Settings
from agentinfer.replay.session import Session
from benchmarks.compress.facts import Facts, SessionFacts, invented
from benchmarks.compress.variants import SentTurn, play

SETTINGS = Settings()


@dataclass(slots=True)
class Work:
    """A session under one variant. All but the counts of turns are tokens.

    `carried`: prompts, summed over the turns; `last`: the last one. `computed`: of them what an ideal prefix cache of
    the session lacks, on the agent's path; `background`: what was computed off it. `at_swaps`: on the path, in swap
    turns. `distil`: what a model would read to write the notes; extracted ones need none. `waits`: turns for which the
    agent waited for a note, `waited`: tokens computed meanwhile, reading for the note included.
    """

    turns: int = 0
    carried: int = 0
    last: int = 0
    computed: int = 0
    background: int = 0
    swaps: int = 0
    at_swaps: int = 0
    distil: int = 0
    waits: int = 0
    waited: int = 0
    warm_shares: list[float] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True, slots=True)
class SessionWork:
    """A session under all variants; `note_anchors` of ours, and how many of them their sources do not have."""

    id: str
    work: dict[str, Work]
    note_anchors: int
    invented: int


def measure(session: Session, notes: Notes, settings: Settings, counter: PromptTokens) -> SessionWork:
    tools = session.tool_schemas
    exchanges = [Exchange(turn.prompt, turn.reply) for turn in session.turns]
    played = play(exchanges, notes, settings, lambda messages: counter.prompt(messages, tools))
    facts = SessionFacts([each.prompt for each in exchanges], [each.reply for each in exchanges])
    work = {}
    for name, turns in played.turns.items():
        work[name] = counted(turns, exchanges, counter, tools)
        for index, turn in enumerate(turns):
            work[name].facts.add(facts.judge(index, turn))
    return SessionWork(session.id, work, *invented(played.notes))


def measure_extracted(session: Session) -> SessionWork:
    """With notes that are extracted and `SETTINGS`. In whichever process: each loads its own tokenizer."""
    return measure(session, ExtractiveDistiller().note, SETTINGS, counter())


@lru_cache(maxsize=1)
def counter() -> PromptTokens:
    return PromptTokens()


def counted(
    turns: Sequence[SentTurn], exchanges: Sequence[Exchange], counter: PromptTokens, tools: Sequence[dict[str, Any]]
) -> Work:
    found = Work()
    cache = PrefixCache()
    for turn, exchange in zip(turns, exchanges, strict=True):
        segments = counter.segments([*turn.sent, exchange.reply], tools)
        prompt = segments[:-1]
        size = sum(each.num_tokens for each in prompt) + counter.reply_tokens
        computed = size - cache.cached_tokens(list(_parts(prompt)))
        found.turns += 1
        found.carried += size
        found.last = size
        found.computed += computed
        reading = _reading(turn.distilled, counter)
        found.distil += reading
        if turn.is_swap:
            found.swaps += 1
            found.at_swaps += computed
            found.warm_shares.append(1.0 - computed / size)
        if turn.waited:
            found.waits += 1
            found.waited += computed + reading
        cache.add([each.key for each in segments])
        for messages in turn.prefilled:
            parts = counter.segments(messages, tools)
            found.background += sum(each.num_tokens for each in parts) - cache.cached_tokens(list(_parts(parts)))
            cache.add([each.key for each in parts])
    return found


def _parts(segments: Sequence[Segment]) -> Iterator[tuple[bytes, int]]:
    return ((each.key, each.num_tokens) for each in segments)


def _reading(assignment: Assignment | None, counter: PromptTokens) -> int:
    if assignment is None:
        return 0
    texts = [assignment.task, assignment.reasoning, *(each.text for each in assignment.observations)]
    return sum(counter.text(text) for text in texts if text)
