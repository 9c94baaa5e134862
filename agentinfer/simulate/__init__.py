"""Recorded sessions on a simulated engine (`agentinfer simulate`), measuring a real one (`agentinfer calibrate`)."""

from __future__ import annotations

from agentinfer.simulate.counting import TokenCount
from agentinfer.simulate.policies import PolicyName, parse_policies
from agentinfer.simulate.run import SimulationOptions, simulate
from agentinfer.simulate.sessions import Workload, read_workload

__all__ = [
    "PolicyName",
    "SimulationOptions",
    "TokenCount",
    "Workload",
    "parse_policies",
    "read_workload",
    "simulate",
]
