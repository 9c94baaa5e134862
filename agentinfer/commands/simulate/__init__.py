"""Recorded sessions on a simulated engine (`agentinfer simulate`), measuring a real one (`agentinfer calibrate`)."""

from __future__ import annotations

from agentinfer.commands.simulate.counting import TokenCount
from agentinfer.commands.simulate.policies import PolicyName, parse_policies
from agentinfer.commands.simulate.run import SimulationOptions, simulate
from agentinfer.commands.simulate.sessions import Workload, read_workload

__all__ = [
    "PolicyName",
    "SimulationOptions",
    "TokenCount",
    "Workload",
    "parse_policies",
    "read_workload",
    "simulate",
]
