"""What speculation did, step by step: times for the width controller, counts for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from agentinfer.metrics import SpeculationMetrics


@dataclass(slots=True)
class StepFigures:
    """One step. `rows` were computed; of `drafted` tokens `accepted` were right; `draft_s` is host time of drafting."""

    batch_size: int
    rows: int
    drafted: int
    accepted: int
    draft_s: float


class StepTimer:
    """Measures steps for the width controller: from a step's start to the next one's, the scheduler's share included.

    Where no step follows at once (a prefill came between, or other requests run), the time until the step's end counts.
    """

    def __init__(self, observe: Callable[[int, int, int, float, int], None], clock: Callable[[], float] = perf_counter):
        """`observe(batch_size, width, context_tokens, step_seconds, tokens_out)` is the controller's."""
        self._observe = observe
        self._clock = clock
        self._started_s = 0.0
        self._requests: frozenset[int] = frozenset()
        self._ended: _EndedStep | None = None

    def start_step(self, requests: Sequence[object]) -> None:
        """A decode step begins."""
        now_s = self._clock()
        identities = frozenset(map(id, requests))
        self._settle(now_s if identities & self._requests else None)
        self._started_s, self._requests = now_s, identities

    def end_step(self, batch_size: int, width: int, context_tokens: int, draft_s: float, tokens_out: int) -> None:
        """Its tokens are known. `draft_s`, which the controller is told apart, does not count."""
        self._ended = _EndedStep(batch_size, width, context_tokens, draft_s, tokens_out, self._clock())

    def interrupt(self) -> None:
        """Something other than a decode step begins."""
        self._settle(None)

    def _settle(self, next_start_s: float | None) -> None:
        step, self._ended = self._ended, None
        if step is None:
            return
        end_s = step.ended_s if next_start_s is None else next_start_s
        seconds = max(end_s - self._started_s - step.draft_s, 1e-6)
        self._observe(step.batch_size, step.width, step.context_tokens, seconds, step.tokens_out)


@dataclass(frozen=True, slots=True)
class _EndedStep:
    batch_size: int
    width: int
    context_tokens: int
    draft_s: float
    tokens_out: int
    ended_s: float


class Statistics:
    """Totals of a worker, passed on to `metrics` where there are any."""

    def __init__(self, metrics: SpeculationMetrics | None) -> None:
        self._metrics = metrics
        self.steps = 0
        self.rows = 0
        self.drafted = 0
        self.accepted = 0

    def count(self, step: StepFigures) -> None:
        self.steps += 1
        self.rows += step.rows
        self.drafted += step.drafted
        self.accepted += step.accepted
        if self._metrics is not None:
            self._metrics.step(step.drafted, step.accepted, step.rows / step.batch_size, step.draft_s)
