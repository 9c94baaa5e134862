"""From a configuration to the service, for a server that has been set up but does not serve yet."""

from __future__ import annotations

from pathlib import Path

from agentinfer.clock import Clock
from agentinfer.compress.settings import Settings
from agentinfer.compress.store import CompositionStore
from agentinfer.config import CompressionConfig
from agentinfer.metrics import CompressionMetrics
from agentinfer.runtime.compression.distilling import Distillers
from agentinfer.runtime.compression.service import CompressionService
from agentinfer.runtime.compression.template import engine_render, note_may_be_a_step
from agentinfer.runtime.scheduling.channel import SchedulerChannel


def open_store(config: CompressionConfig) -> CompositionStore:
    """Raises ConfigError for a folder that cannot be used."""
    folder = None if config.compress_store is None else Path(config.compress_store)
    return CompositionStore(config.compress_store_mb << 20, folder)


def make_service(
    config: CompressionConfig, store: CompositionStore, clock: Clock, channel: SchedulerChannel | None
) -> CompressionService:
    """Raises ConfigError where the engine's chat template renders no tool results, and for an impossible model."""
    from sglang.srt.entrypoints.http_server import get_global_state

    distillers = Distillers(config)
    is_step = note_may_be_a_step(engine_render(get_global_state().tokenizer_manager.tokenizer))
    return CompressionService(
        settings=Settings(
            threshold_tokens=config.compress_threshold_tokens,
            keep_recent_steps=config.compress_keep_steps,
            take_payloads=config.compress_payloads,
            note_is_step=is_step,
            distil_timeout_s=config.compress_timeout_s,
        ),
        store=store,
        choose_distiller=distillers.for_client,
        counts=distillers.counts,
        clock=clock,
        metrics=CompressionMetrics(),
        channel=channel,
    )
