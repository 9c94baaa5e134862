"""What speculation did since the start, counted a step: for Prometheus where metrics are on, and for tests."""

from __future__ import annotations

from dataclasses import dataclass

from agentinfer.metrics import SpeculationMetrics


@dataclass(slots=True)
class StepFigures:
    """One step. `rows` were computed; of `drafted` tokens `accepted` were right; `draft_s` is host time of drafting."""

    batch_size: int
    rows: int
    drafted: int
    accepted: int
    draft_s: float


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
