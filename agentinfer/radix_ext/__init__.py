"""AgentSched: which sessions run at once, whose turn is next, and what stays in the cache. See README.md."""

from __future__ import annotations

from agentinfer.radix_ext.facade import KvState, Plan, Policy, TurnRequest
from agentinfer.radix_ext.paths import ROOT, PathTree
from agentinfer.radix_ext.policy import AgentPolicy
from agentinfer.radix_ext.settings import SchedulingSettings

__all__ = ["ROOT", "AgentPolicy", "KvState", "PathTree", "Plan", "Policy", "SchedulingSettings", "TurnRequest"]
