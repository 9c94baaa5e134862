"""Warm hand-over: whether the model that does not speak should prefill now what it has not seen (not in the paper).

A switch makes the other model prefill all that was said since it last spoke, and the user waits for it. While a tool
runs, that prefill is free if the other engine has nothing else to do, and lost only if the session never switches.
So it is done when the chance of a switch in the rest of the session is above its price, which rises with the load:

    chance = 1                            while the large model speaks: every way out of it leads to the small one
    chance = 1 - (1 - p) ** steps_left    while the small one does, p its rate of escalation
    worth  <=>  chance > MIN_CHANCE + (1 - MIN_CHANCE) * load
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agentinfer.collab_lang.controller import Model, State

MIN_CHANCE: Final = 0.05
# Fewer than these are no wait worth a request.
MIN_TOKENS: Final = 64
# Steps that a session goes on for, where its own length so far says less: recorded ones have tens.
_STEPS_LEFT: Final = 10


@dataclass(slots=True)
class EscalationRate:
    """How often steps of the small model are escalated; begins with the weight of two steps, one of them escalated."""

    escalated: float = 1.0
    kept: float = 1.0

    def observe(self, is_escalated: bool) -> None:
        if is_escalated:
            self.escalated += 1.0
        else:
            self.kept += 1.0

    @property
    def per_step(self) -> float:
        return self.escalated / (self.escalated + self.kept)


def chance_of_switch(state: State, escalation_per_step: float) -> float:
    """The probability that the model that does not speak now will speak in this session again."""
    if state.is_over:
        return 0.0
    if state.model is Model.LARGE:
        return 1.0
    return 1.0 - (1.0 - escalation_per_step) ** max(_STEPS_LEFT, state.steps)


def is_worth(chance: float, load: float, unseen_tokens: int) -> bool:
    """Whether to prefill `unseen_tokens` on an engine that is busy for the share `load` of the time."""
    return unseen_tokens >= MIN_TOKENS and chance > MIN_CHANCE + (1.0 - MIN_CHANCE) * min(1.0, load)


@dataclass(slots=True)
class HandOvers:
    """What switches found prefilled. `unseen_tokens`: said since the model last spoke; a cold switch computes them."""

    switches: int = 0
    unseen_tokens: int = 0
    computed_tokens: int = 0

    def add(self, prompt_tokens: int, cached_tokens: int, seen_tokens: int, fresh_tokens: int = 0) -> None:
        """A switch's first turn: its prompt, what was in the cache, and what was when the model last spoke.

        `fresh_tokens` of the prompt came with the turn itself, such as a tool's result: either model has to compute
        those, so they are no matter of the switch.
        """
        unseen = max(0, prompt_tokens - seen_tokens - fresh_tokens)
        self.switches += 1
        self.unseen_tokens += unseen
        self.computed_tokens += max(0, min(prompt_tokens - cached_tokens - fresh_tokens, unseen))

    @property
    def prefilled_share(self) -> float | None:
        """Of the tokens that switches needed and had not seen, those that were there in time."""
        return 1.0 - self.computed_tokens / self.unseen_tokens if self.unseen_tokens else None
