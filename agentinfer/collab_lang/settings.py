"""What decides which of the two models speaks, and how its progress is checked."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentinfer.errors import ConfigError


class Check(StrEnum):
    """How the model that spoke is asked whether its step made progress."""

    # The paper's block: a reason in words, then the value. The embedded models decode 50 to 80 tokens for it.
    BLOCK = "block"
    # The value alone, as the probability of one token: a prefill of the question.
    VERDICT = "verdict"
    # No question: every verdict is missing, so the models take turns by the limits alone.
    OFF = "off"


@dataclass(frozen=True, slots=True)
class CollabSettings:
    """The controller's budgets and the check's form. Raises ConfigError for a value that makes no sense.

    `warm_up_steps`: the paper's K_L. The three of the burst: its budget B_L, which grows with bursts that brought
    nothing (follow-up, arXiv 2603.26034: first 2, then 2 more each, at most 6, with K_L = 2 and at most 40 steps).
    `threshold`: a step counts as progress when the probability of TRUE is at least this; 0.5 is what greedy decoding of
    the value would say. `missing_limit`: so many verdicts missing in a row on the small model count as no progress.
    `max_steps` ends a program; a server ends nobody's session and leaves it out.
    """

    warm_up_steps: int = 2
    burst_first: int = 2
    burst_growth: int = 2
    burst_max: int = 6
    threshold: float = 0.5
    missing_limit: int = 3
    max_steps: int | None = 40
    check: Check = Check.BLOCK

    def __post_init__(self) -> None:
        for name, low in (("warm_up_steps", 0), ("burst_first", 1), ("burst_growth", 0), ("missing_limit", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least {low}")
        if self.burst_max < self.burst_first:
            raise ConfigError(
                f"burst_max: got {self.burst_max}, expected at least burst_first, which is {self.burst_first}"
            )
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold: got {self.threshold}, expected a probability from 0 to 1")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps: got {self.max_steps}, expected at least 1, or None for no limit")
