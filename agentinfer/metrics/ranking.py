"""Ranking of search results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentinfer.metrics.spec import MetricSpec, live

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

REQUESTS: Final = MetricSpec(
    "agentinfer_rank_requests_total",
    "counter",
    "Requests to rank search results, by who judged: model, words, fallback (words, as the model failed) or refused.",
    ("judge",),
)
RESULTS: Final = MetricSpec(
    "agentinfer_rank_results_total", "counter", "Search results that were ranked, kept or dropped.", ("verdict",)
)
LATENCY: Final = MetricSpec(
    "agentinfer_rank_seconds",
    "histogram",
    "Seconds that a ranking took, its wait for the engine included.",
    ("judge",),
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120),
)

METRICS: Final = (REQUESTS, RESULTS, LATENCY)


class RankingMetrics:
    """The live metrics of `POST /agentinfer/rank`, for the process that serves HTTP. Build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = live(METRICS, registry)

    def ranked(self, judge: str, num_results: int, num_kept: int, seconds: float) -> None:
        """Count a ranking and its results."""
        self._live[REQUESTS.name].labels(judge=judge).inc()
        self._live[RESULTS.name].labels(verdict="kept").inc(num_kept)
        self._live[RESULTS.name].labels(verdict="dropped").inc(num_results - num_kept)
        self._live[LATENCY.name].labels(judge=judge).observe(seconds)

    def refused(self) -> None:
        """Count a request that could not be understood."""
        self._live[REQUESTS.name].labels(judge="refused").inc()
