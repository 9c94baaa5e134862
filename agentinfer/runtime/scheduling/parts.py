"""What the engine side is made of: the policy with its settings and what was learned before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agentinfer.config import SchedulingConfig
from agentinfer.radix_ext import latency_file
from agentinfer.radix_ext.policy import AgentPolicy
from agentinfer.radix_ext.settings import SchedulingSettings
from agentinfer.radix_ext.tool_latency import ToolLatency
from agentinfer.sealed_file import SealError


def make_policy(config: SchedulingConfig, capacity_tokens: int) -> AgentPolicy:
    """The policy for a cache of `capacity_tokens`; the same on every rank."""
    settings = SchedulingSettings(max_wait_s=config.sched_max_wait_s)
    if config.sched_prefill_tokens_per_s is not None:
        settings = replace(settings, prefill_tokens_per_s=config.sched_prefill_tokens_per_s)
    return AgentPolicy(settings, capacity_tokens, _learned(config))


def _learned(config: SchedulingConfig) -> ToolLatency:
    """What the HTTP process has on disk of tools' latencies; that process alone writes the file."""
    if config.sched_latency_file is None:
        return ToolLatency()
    try:
        return ToolLatency(latency_file.read(Path(config.sched_latency_file)))
    except SealError:
        return ToolLatency()  # the HTTP process says so, and sets the file aside
