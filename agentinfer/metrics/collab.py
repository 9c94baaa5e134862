"""Collaboration, counted by the process in front of the two engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentinfer.metrics.spec import LATENCY_BUCKETS_S, MetricSpec, live

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

STEPS: Final = MetricSpec(
    "agentinfer_collab_steps_total", "counter", "Steps of the pair, by who spoke and why.", ("model", "reason")
)
VERDICTS: Final = MetricSpec(
    "agentinfer_collab_verdicts_total",
    "counter",
    "What the next step's speaker was decided by: progress, no_progress or missing.",
    ("model", "verdict"),
)
CHECKS: Final = MetricSpec(
    "agentinfer_collab_checks_total",
    "counter",
    "Progress checks, by how they ended: judged, unreadable, failed, or cancelled since of no more use.",
    ("model", "end"),
)
LATE: Final = MetricSpec(
    "agentinfer_collab_late_verdicts_total", "counter", "Verdicts that came after the next step had begun."
)
CHECK: Final = MetricSpec(
    "agentinfer_collab_check_seconds",
    "histogram",
    "Seconds that a progress check took, beside the agent's tool.",
    ("model",),
    LATENCY_BUCKETS_S,
)
P_TRUE: Final = MetricSpec(
    "agentinfer_collab_progress_ratio",
    "histogram",
    "The probability of progress that a check gave.",
    ("model",),
    (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
)
SWITCHES: Final = MetricSpec(
    "agentinfer_collab_switches_total", "counter", "Steps that another model spoke than the one before.", ("to",)
)
SWITCH_TOKENS: Final = MetricSpec(
    "agentinfer_collab_switch_tokens_total",
    "counter",
    "Prompt tokens that switches needed and had not seen: there ahead of the turn, or computed within it.",
    ("source",),
)
AHEAD: Final = MetricSpec(
    "agentinfer_collab_prefills_total",
    "counter",
    "Prompts that the silent model was to compute ahead, by how that ended: done, cancelled by the next turn, failed.",
    ("model", "end"),
)
AHEAD_TOKENS: Final = MetricSpec(
    "agentinfer_collab_prefilled_tokens_total", "counter", "Prompt tokens computed ahead of a turn.", ("model",)
)
FAILOVERS: Final = MetricSpec(
    "agentinfer_collab_failovers_total",
    "counter",
    "Turns that lost the engine of a model, before it said a word or in the middle of its reply.",
    ("model", "when"),
)
UP: Final = MetricSpec("agentinfer_collab_engine_up", "gauge", "Whether a model's engine is up: 1 or 0.", ("model",))

METRICS: Final = (
    STEPS,
    VERDICTS,
    CHECKS,
    LATE,
    CHECK,
    P_TRUE,
    SWITCHES,
    SWITCH_TOKENS,
    AHEAD,
    AHEAD_TOKENS,
    FAILOVERS,
    UP,
)


class CollabMetrics:
    """The live metrics of the pair, for the process in front of its engines. As `Metrics`, build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = live(METRICS, registry)

    def step(self, model: str, reason: str) -> None:
        """Count a step that was spoken."""
        self._live[STEPS.name].labels(model=model, reason=reason).inc()

    def verdict(self, model: str, verdict: str) -> None:
        """Count what a step was judged by."""
        self._live[VERDICTS.name].labels(model=model, verdict=verdict).inc()

    def check(self, model: str, end: str, took_s: float) -> None:
        """Count a check that ended."""
        self._live[CHECKS.name].labels(model=model, end=end).inc()
        if end == "judged":
            self._live[CHECK.name].labels(model=model).observe(took_s)

    def judged(self, model: str, p_true: float | None, is_late: bool) -> None:
        """Count a check's verdict, with its probability of progress where there is one."""
        if p_true is not None:
            self._live[P_TRUE.name].labels(model=model).observe(p_true)
        if is_late:
            self._live[LATE.name].inc()

    def switch(self, to: str, unseen_tokens: int, computed_tokens: int) -> None:
        """Count a switch, and what its first turn found of the tokens that the model had not seen."""
        self._live[SWITCHES.name].labels(to=to).inc()
        tokens = self._live[SWITCH_TOKENS.name]
        tokens.labels(source="ahead").inc(unseen_tokens - computed_tokens)
        tokens.labels(source="computed").inc(computed_tokens)

    def warmed(self, model: str, end: str, computed_tokens: int) -> None:
        """Count a prompt that was to be computed ahead."""
        self._live[AHEAD.name].labels(model=model, end=end).inc()
        self._live[AHEAD_TOKENS.name].labels(model=model).inc(computed_tokens)

    def failover(self, lost: str, is_mid_reply: bool) -> None:
        """Count a turn that lost its engine."""
        when = "mid_reply" if is_mid_reply else "before_reply"
        self._live[FAILOVERS.name].labels(model=lost, when=when).inc()

    def engine_up(self, model: str, is_up: bool) -> None:
        """Take over whether an engine is up."""
        self._live[UP.name].labels(model=model).set(int(is_up))
