"""Which model speaks next: the paper's state machine (section 1), with the follow-up's growing burst budget.

    opening -> large for `warm_up_steps` steps -> small
    small:  progress -> small      no progress -> large, for a burst      verdict missing -> small, up to a limit
    large:  progress -> small      no progress or missing -> large until the burst's budget is spent, then small

Pure: a state, a verdict, the next state. On the large model a missing verdict spends the budget like one of no
progress, since a check that fails must not keep the expensive model speaking; on the small model it is no news, until
`missing_limit` in a row count as no progress, since a check that fails must not keep a lost agent with the small one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from agentinfer.collab_lang.settings import CollabSettings


class Model(StrEnum):
    """One of the pair."""

    LARGE = "large"
    SMALL = "small"

    @property
    def other(self) -> Model:
        return Model.SMALL if self is Model.LARGE else Model.LARGE


class Verdict(StrEnum):
    """What the check of a step said."""

    PROGRESS = "progress"
    NO_PROGRESS = "no_progress"
    MISSING = "missing"


class Phase(StrEnum):
    """Where in the machine a trajectory is."""

    WARM_UP = "warm_up"
    SMALL = "small"
    BURST = "burst"


class Reason(StrEnum):
    """Why the model of a state speaks next, or why nobody does."""

    OPENING = "opening"
    WARM_UP = "warm_up"
    WARM_UP_DONE = "warm_up_done"
    PROGRESS = "progress"
    NO_VERDICT = "no_verdict"
    NO_PROGRESS = "no_progress"
    VERDICTS_MISSING = "verdicts_missing"
    IN_BURST = "in_burst"
    RECOVERED = "recovered"
    BUDGET_SPENT = "budget_spent"
    # Nobody speaks next.
    FINAL_ANSWER = "final_answer"
    STEPS_SPENT = "steps_spent"


@dataclass(frozen=True, slots=True)
class State:
    """Who speaks next and why; the rest is what the next decision needs.

    `steps`: taken so far. `burst_steps`: of the present burst, taken. `fruitless_bursts`: bursts in a row that spent
    their budget, with no progress since. `missing`: verdicts missing in a row on the small model.
    """

    phase: Phase
    reason: Reason = Reason.OPENING
    steps: int = 0
    burst_steps: int = 0
    fruitless_bursts: int = 0
    missing: int = 0
    is_over: bool = False

    @property
    def model(self) -> Model:
        return Model.SMALL if self.phase is Phase.SMALL else Model.LARGE


def opening(settings: CollabSettings) -> State:
    """The state before a trajectory's first step."""
    return State(Phase.WARM_UP if settings.warm_up_steps else Phase.SMALL)


def burst_budget(state: State, settings: CollabSettings) -> int:
    """The steps that the large model may take without progress before it has to give way."""
    return min(settings.burst_first + settings.burst_growth * state.fruitless_bursts, settings.burst_max)


def after_step(state: State, verdict: Verdict, settings: CollabSettings, is_final: bool = False) -> State:
    """The state after one more step, which `verdict` is about; `is_final`: it gave the final answer.

    A final answer ends the trajectory, except one of the warm-up whose verdict is no progress (the paper's rule).
    Raises ValueError where the trajectory is over already.
    """
    if state.is_over:
        raise ValueError(f"the trajectory ended at step {state.steps}; no step can follow")
    state = replace(state, steps=state.steps + 1)
    is_doubted = state.phase is Phase.WARM_UP and verdict is Verdict.NO_PROGRESS
    if is_final and not is_doubted:
        return replace(state, is_over=True, reason=Reason.FINAL_ANSWER)
    if settings.max_steps is not None and state.steps >= settings.max_steps:
        return replace(state, is_over=True, reason=Reason.STEPS_SPENT)
    if state.phase is Phase.WARM_UP:
        if state.steps < settings.warm_up_steps:
            return replace(state, reason=Reason.WARM_UP)
        return replace(state, phase=Phase.SMALL, reason=Reason.WARM_UP_DONE)
    if state.phase is Phase.SMALL:
        return _after_small(state, verdict, settings)
    return _after_large(state, verdict, settings)


def _after_small(state: State, verdict: Verdict, settings: CollabSettings) -> State:
    if verdict is Verdict.PROGRESS:
        return replace(state, reason=Reason.PROGRESS, fruitless_bursts=0, missing=0)
    missing = state.missing + 1 if verdict is Verdict.MISSING else 0
    if verdict is Verdict.MISSING and missing < settings.missing_limit:
        return replace(state, reason=Reason.NO_VERDICT, missing=missing)
    reason = Reason.VERDICTS_MISSING if verdict is Verdict.MISSING else Reason.NO_PROGRESS
    return replace(state, phase=Phase.BURST, reason=reason, burst_steps=0, missing=0)


def _after_large(state: State, verdict: Verdict, settings: CollabSettings) -> State:
    if verdict is Verdict.PROGRESS:
        return replace(state, phase=Phase.SMALL, reason=Reason.RECOVERED, burst_steps=0, fruitless_bursts=0)
    taken = state.burst_steps + 1
    if taken < burst_budget(state, settings):
        return replace(state, reason=Reason.IN_BURST, burst_steps=taken)
    spent = state.fruitless_bursts + 1
    return replace(state, phase=Phase.SMALL, reason=Reason.BUDGET_SPENT, burst_steps=0, fruitless_bursts=spent)
