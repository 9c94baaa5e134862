"""Compression, where it is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentinfer.metrics.spec import MetricSpec, live

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

RECALLS: Final = MetricSpec(
    "agentinfer_compress_recalls_total",
    "counter",
    "Calls of `recall` that the server answered: found, or refused for an id that names nothing.",
    ("outcome",),
)
JOBS: Final = MetricSpec(
    "agentinfer_compress_jobs_total", "counter", "Compressions of a session's memory, by how they ended.", ("end",)
)
SAVED: Final = MetricSpec(
    "agentinfer_compress_saved_tokens_total",
    "counter",
    "Prompt tokens that turns did without thanks to a shortened context, estimated from characters.",
)
WARMED: Final = MetricSpec(
    "agentinfer_compress_warmed_tokens_total", "counter", "Tokens of shortened contexts computed beside the turns."
)
DROPPED: Final = MetricSpec(
    "agentinfer_compress_dropped_lines_total",
    "counter",
    "Lines of a model's notes that were left out because their source does not bear them out.",
)

METRICS: Final = (JOBS, SAVED, WARMED, DROPPED, RECALLS)


class CompressionMetrics:
    """The live metrics of compression, for the process that serves HTTP. As `Metrics`, build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = live(METRICS, registry)
        self._dropped = 0

    def job(self, end: str) -> None:
        """Count a job that ended."""
        self._live[JOBS.name].labels(end=end).inc()

    def saved(self, num_tokens: int) -> None:
        """Count what a turn's prompt was shorter by."""
        self._live[SAVED.name].inc(num_tokens)

    def warmed(self, num_tokens: int) -> None:
        """Count tokens computed ahead."""
        self._live[WARMED.name].inc(num_tokens)

    def recall(self, outcome: str) -> None:
        """Count a call of `recall` that was answered."""
        self._live[RECALLS.name].labels(outcome=outcome).inc()

    def dropped_lines(self, total: int) -> None:
        """Take over how many lines were left out since the start."""
        self._live[DROPPED.name].inc(max(0, total - self._dropped))
        self._dropped = total
