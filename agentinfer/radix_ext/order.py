"""The order among turns that may go: the paper's score (section 3) in seconds, with progress and parents.

    need_eff = mix * prompt + (1 - mix) * need
    score = a * hit - (b + lambda) * need_eff + c * wait * (1 + g * progress) + p * parent

Tokens are turned into seconds of prefill, so that the terms weigh against each other: with all weights 1 and a loose
cache, a turn overtakes another when that one loses less by waiting than it saves. In a loose cache the shortest prompt
goes first, so short tool requests overtake; in a tight one hits go first and new tokens wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentinfer.radix_ext.pressure import Pressure
from agentinfer.radix_ext.settings import SchedulingSettings

# Turns after which a session's waiting turn ages as fast as it ever will.
_FULL_PROGRESS_TURNS = 50


@dataclass(frozen=True, slots=True)
class Scored:
    """What a waiting turn's score is made of. `parent_tokens`: cached context that idles until this turn is done."""

    prompt_tokens: int
    hit_tokens: int
    waited_s: float
    num_turns: int
    parent_tokens: int = 0


def score(turn: Scored, pressure: Pressure, settings: SchedulingSettings) -> float:
    """Seconds; the highest goes first."""
    need = turn.prompt_tokens - turn.hit_tokens
    effective = pressure.looseness * turn.prompt_tokens + (1.0 - pressure.looseness) * need
    progress = min(turn.num_turns, _FULL_PROGRESS_TURNS) / _FULL_PROGRESS_TURNS
    in_tokens = (
        settings.hit_weight * turn.hit_tokens
        - (settings.need_weight + pressure.price) * effective
        + settings.parent_weight * turn.parent_tokens
    )
    aged_s = settings.wait_weight * turn.waited_s * (1.0 + settings.progress_weight * progress)
    return in_tokens / settings.prefill_tokens_per_s + aged_s
