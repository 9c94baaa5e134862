"""Speculation, counted by the process that decodes, and only where it is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentinfer.metrics.spec import MetricSpec, live

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

STEPS: Final = MetricSpec("agentinfer_spec_steps_total", "counter", "Decode steps of the speculative worker.")
DRAFTED: Final = MetricSpec(
    "agentinfer_spec_drafted_tokens_total",
    "counter",
    "Drafted tokens that were verified, beside each step's normal one.",
)
ACCEPTED: Final = MetricSpec(
    "agentinfer_spec_accepted_tokens_total", "counter", "Drafted tokens that were accepted, each a decode step saved."
)
WIDTH: Final = MetricSpec(
    "agentinfer_spec_width_tokens",
    "histogram",
    "Tokens verified a request in a decode step, the normal one included; 1 is plain decoding.",
    (),
    (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64),
)
DRAFT: Final = MetricSpec(
    "agentinfer_spec_draft_seconds",
    "histogram",
    "Seconds of host time that drafting took a decode step, for the whole batch.",
    (),
    (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
)

METRICS: Final = (STEPS, DRAFTED, ACCEPTED, WIDTH, DRAFT)


class SpeculationMetrics:
    """The live metrics of speculation, for the process that decodes. As `Metrics`, build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = live(METRICS, registry)

    def step(self, drafted: int, accepted: int, width: float, draft_s: float) -> None:
        """Count a decode step; `width` is the mean over its requests."""
        self._live[STEPS.name].inc()
        self._live[DRAFTED.name].inc(drafted)
        self._live[ACCEPTED.name].inc(accepted)
        self._live[WIDTH.name].observe(width)
        self._live[DRAFT.name].observe(draft_s)
