"""One trajectory as both doors follow it: who speaks, the check that may still run, and what was decided why.

A step begins (`begin_step`), ends (`end_step`), and is judged while its tool runs (`judged`). No turn waits for a
verdict: one that comes after the next step began changes nothing in that step, and counts at the next boundary if that
step is the same model's and has no verdict of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from agentinfer.collab_lang.controller import Model, Reason, State, Verdict, after_step, opening
from agentinfer.collab_lang.progress import Judgement, verdict
from agentinfer.collab_lang.settings import CollabSettings

_KEPT_TRANSITIONS: Final = 256
# The reason given where the model of the state cannot speak.
UNAVAILABLE: Final = "model_unavailable"


@dataclass(frozen=True, slots=True)
class Choice:
    """Who speaks in a step, and why: a `Reason`, or `UNAVAILABLE`."""

    step: int
    model: Model
    reason: str


@dataclass(frozen=True, slots=True)
class Transition:
    """What a step's end led to; `speaker` spoke in it."""

    step: int
    speaker: Model
    verdict: Verdict
    next_model: Model
    reason: Reason
    p_true: float | None = None
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"step": self.step, "model": self.speaker.value, "verdict": self.verdict.value}
        row |= {"next_model": self.next_model.value, "reason": self.reason.value}
        return row | ({} if self.p_true is None else {"p_true": self.p_true}) | ({"why": self.why} if self.why else {})


@dataclass(slots=True)
class Trajectory:
    """A session's place in the state machine. Not thread-safe: the caller serialises the turns of one session."""

    settings: CollabSettings
    state: State = field(init=False)
    transitions: deque[Transition] = field(default_factory=lambda: deque(maxlen=_KEPT_TRANSITIONS))
    late_verdicts: int = 0
    _speaker: Model | None = None
    _previous_speaker: Model | None = None
    _is_final: bool = False
    _judgements: dict[int, Judgement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = opening(self.settings)

    def begin_step(self, available: Collection[Model] = tuple(Model)) -> Choice:
        """Closes the step before, with the verdict that is there, and says who speaks now.

        Raises ValueError where no model is available or the trajectory is over.
        """
        if not available:
            raise ValueError("no model is available")
        self._close_step()
        if self.state.is_over:
            raise ValueError(f"the trajectory ended at step {self.state.steps}")
        model, reason = self.state.model, str(self.state.reason)
        if model not in available:
            model, reason = model.other, UNAVAILABLE
        return Choice(self.state.steps, model, reason)

    def end_step(self, speaker: Model, is_final: bool = False) -> int:
        """The step that was begun has its reply; returns its number, by which its judgement is given."""
        self._speaker, self._is_final = speaker, is_final
        return self.state.steps

    def judged(self, step: int, judgement: Judgement) -> None:
        """The check of `step` came back. Of steps already closed, only the newest one's is kept."""
        if step < self.state.steps:
            self.late_verdicts += 1
        if step >= max(self._judgements, default=step):
            self._judgements = {step: judgement}

    def withdraw(self, step: int) -> None:
        """What was said of `step` was about a part of it: it goes on."""
        self._judgements.pop(step, None)

    def finish(self) -> State:
        """Closes the last step; the state it leads to."""
        self._close_step()
        return self.state

    def fork(self) -> Trajectory:
        """A branch that goes its own way from here."""
        branch = Trajectory(self.settings)
        branch.state, branch._speaker, branch._is_final = self.state, self._speaker, self._is_final
        branch._previous_speaker = self._previous_speaker
        branch._judgements = dict(self._judgements)
        return branch

    def _close_step(self) -> None:
        if self._speaker is None:
            return
        judgement = self._judgements.get(self.state.steps)
        if judgement is None and self._speaker is self._previous_speaker:
            judgement = self._judgements.get(self.state.steps - 1)
        self._judgements.clear()
        said = verdict(judgement, self.settings.threshold)
        before, self.state = self.state, after_step(self.state, said, self.settings, self._is_final)
        self.transitions.append(
            Transition(
                before.steps,
                self._speaker,
                said,
                self.state.model,
                self.state.reason,
                judgement.p_true if judgement else None,
                judgement.reason if judgement else "",
            )
        )
        self._previous_speaker, self._speaker, self._is_final = self._speaker, None, False
