"""From a configuration to the service, in two steps: before the engine is loaded, and when it is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentinfer.clock import Clock
from agentinfer.compress.settings import Settings
from agentinfer.compress.store import CompositionStore
from agentinfer.config import CompressionConfig
from agentinfer.metrics import CompressionMetrics
from agentinfer.runtime.compression.distilling import Distillers
from agentinfer.runtime.compression.service import CompressionService
from agentinfer.runtime.compression.template import engine_render, note_may_be_a_step
from agentinfer.runtime.prefill.warming import Pace
from agentinfer.runtime.scheduling.channel import SchedulerChannel

if TYPE_CHECKING:
    from agentinfer.runtime.compression.recall.offer import Recall


@dataclass(frozen=True, slots=True)
class PreparedCompression:
    """What can be made, or refused, before there is an engine."""

    config: CompressionConfig
    store: CompositionStore
    distillers: Distillers

    def service(self, clock: Clock, pace: Pace, channel: SchedulerChannel | None) -> CompressionService:
        """For an engine that is there. Raises ConfigError where its chat template renders no tool results."""
        from sglang.srt.entrypoints.http_server import get_global_state

        is_step = note_may_be_a_step(engine_render(get_global_state().tokenizer_manager.tokenizer))
        metrics = CompressionMetrics()
        return CompressionService(
            settings=Settings(
                threshold_tokens=self.config.compress_threshold_tokens,
                keep_recent_steps=self.config.compress_keep_steps,
                take_payloads=self.config.compress_payloads,
                note_is_step=is_step,
                distil_timeout_s=self.config.compress_timeout_s,
            ),
            store=self.store,
            choose_distiller=self.distillers.for_client,
            counts=self.distillers.counts,
            clock=clock,
            pace=pace,
            metrics=metrics,
            channel=channel,
            recall=self._recall(metrics) if self.config.compress_recall else None,
        )

    def _recall(self, metrics: CompressionMetrics) -> Recall:
        from agentinfer.runtime.compression.recall.offer import Recall

        return Recall(self.config.compress_store_mb << 20, metrics)


def prepare(config: CompressionConfig) -> PreparedCompression:
    """Raises ConfigError for a folder that cannot be used, and for an impossible model."""
    folder = None if config.compress_store is None else Path(config.compress_store)
    return PreparedCompression(config, CompositionStore(config.compress_store_mb << 20, folder), Distillers(config))
