"""What makes notes: the interface that the extractive compressor, the engine's own model and another endpoint share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentinfer.compress.memory import Observation
from agentinfer.compress.note import Note


@dataclass(frozen=True, slots=True)
class Assignment:
    """What is to be distilled. `task` is what the agent was asked, `reasoning` what it thought between the observations
    (both for relevance only), `budget_tokens` how long the note's text may be at `tokens_per_char`."""

    task: str
    reasoning: str
    observations: tuple[Observation, ...]
    budget_tokens: int
    tokens_per_char: float

    @property
    def budget_chars(self) -> int:
        return round(self.budget_tokens / self.tokens_per_char)


class Distiller(Protocol):
    """Anything that makes a note. It may fail by any exception: the session then stays on its old context."""

    async def distil(self, assignment: Assignment) -> Note: ...


def sources_of(observations: Sequence[Observation]) -> dict[int, str]:
    """Text by the place of the observation, with what its tool was called with: what a note may say things of."""
    return {each.index: f"{each.tool} {each.arguments_text}\n{each.text}" for each in observations}
