"""Our Prometheus metrics: a module a feature, with the table of what each means and the calls that feed them."""

from agentinfer.metrics.collab import CollabMetrics
from agentinfer.metrics.compression import CompressionMetrics
from agentinfer.metrics.prefill import PrefillMetrics
from agentinfer.metrics.ranking import RankingMetrics
from agentinfer.metrics.scheduling import SchedulingMetrics
from agentinfer.metrics.speculation import SpeculationMetrics
from agentinfer.metrics.turns import Metrics

__all__ = [
    "CollabMetrics",
    "CompressionMetrics",
    "Metrics",
    "PrefillMetrics",
    "RankingMetrics",
    "SchedulingMetrics",
    "SpeculationMetrics",
]
