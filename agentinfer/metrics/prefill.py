"""Prompts computed ahead on request, where that is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentinfer.metrics.spec import MetricSpec, live

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

REQUESTS: Final = MetricSpec(
    "agentinfer_prefill_requests_total",
    "counter",
    "Requests to compute a prompt ahead, by how they ended: completed, superseded, cancelled, client_gone, turn, "
    "no_room, failed or refused.",
    ("end",),
)
TOKENS: Final = MetricSpec(
    "agentinfer_prefill_computed_tokens_total", "counter", "Prompt tokens computed ahead on request."
)
SECONDS: Final = MetricSpec(
    "agentinfer_prefill_seconds",
    "histogram",
    "Seconds that computing a prompt ahead took, the waits for turns included.",
    (),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)

METRICS: Final = (REQUESTS, TOKENS, SECONDS)


class PrefillMetrics:
    """The live metrics of `POST /agentinfer/prefill`, for the process that serves HTTP. Build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = live(METRICS, registry)

    def ended(self, end: str, num_tokens: int, seconds: float) -> None:
        """Count a request that was begun, and the tokens that it computed."""
        self._live[REQUESTS.name].labels(end=end).inc()
        self._live[TOKENS.name].inc(num_tokens)
        self._live[SECONDS.name].observe(seconds)

    def refused(self) -> None:
        """Count a request of which nothing was computed."""
        self._live[REQUESTS.name].labels(end="refused").inc()
