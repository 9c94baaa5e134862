"""Scheduling, told by the scheduler's process and counted by the one that serves HTTP, where it is on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agentinfer.metrics.spec import MetricSpec, live

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SESSIONS: Final = MetricSpec(
    "agentinfer_sched_sessions",
    "gauge",
    "Live sessions the scheduler knows: members of the working set, visitors for one turn, and those held.",
    ("standing",),
)
WAITING: Final = MetricSpec("agentinfer_sched_waiting_turns", "gauge", "Turns that wait for the engine.")
PRICE: Final = MetricSpec(
    "agentinfer_sched_price", "gauge", "Shadow price of the prefix cache: 0 when all that is wanted fits."
)
COMMITTED: Final = MetricSpec(
    "agentinfer_sched_committed_tokens", "gauge", "Tokens of cache that the working set needs, its growth included."
)
BOUND: Final = MetricSpec(
    "agentinfer_sched_wait_bound_seconds", "gauge", "Seconds after which a turn that is held now will run."
)
OLDEST: Final = MetricSpec(
    "agentinfer_sched_oldest_wait_seconds", "gauge", "Seconds that the turn waiting longest has waited."
)
EVENTS: Final = MetricSpec(
    "agentinfer_sched_events_total",
    "counter",
    "Sessions that joined the working set, were paused or gave their place up while away; turns that visited it, and "
    "that ran because their bound had passed.",
    ("event",),
)
SPEED: Final = MetricSpec(
    "agentinfer_sched_prefill_tokens_per_second", "gauge", "Prompt tokens the engine computes a second, as measured."
)

METRICS: Final = (
    SESSIONS,
    WAITING,
    PRICE,
    COMMITTED,
    BOUND,
    OLDEST,
    EVENTS,
    SPEED,
)

_GAUGES: Final = (
    (WAITING, "waiting"),
    (PRICE, "price"),
    (COMMITTED, "committed_tokens"),
    (BOUND, "bound_s"),
    (OLDEST, "oldest_wait_s"),
    (SPEED, "measured_prefill_tokens_per_s"),
)


class SchedulingMetrics:
    """The live metrics of scheduling, for the process that serves HTTP. As `Metrics`, build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = live(METRICS, registry)
        self._seen: dict[str, int] = {}

    def update(self, figures: Mapping[str, Any]) -> None:
        """Take over the policy's figures; ones that are missing stay as they were."""
        for standing in ("members", "visitors", "held"):
            if standing in figures:
                self._live[SESSIONS.name].labels(standing=standing).set(figures[standing])
        for spec, name in _GAUGES:
            if figures.get(name) is not None:
                self._live[spec.name].set(figures[name])
        for event in ("joined", "paused", "parked", "visits", "due"):
            total = int(figures.get(event, 0))
            self._live[EVENTS.name].labels(event=event).inc(max(0, total - self._seen.get(event, 0)))
            self._seen[event] = total
