"""A discrete-event engine under the same policies as the live one: thousands of sessions, several replicas."""

from __future__ import annotations

from agentinfer.radix_ext.simulator.baselines import ORDERS, StockPolicy
from agentinfer.radix_ext.simulator.costs import EngineCosts, SimulationError
from agentinfer.radix_ext.simulator.evictions import EVICTIONS
from agentinfer.radix_ext.simulator.replicas import fits, run
from agentinfer.radix_ext.simulator.result import SimulationResult, summarise
from agentinfer.radix_ext.simulator.workload import SharedSegment, SimSession, SimTurn, repeated

__all__ = [
    "EVICTIONS",
    "ORDERS",
    "EngineCosts",
    "SharedSegment",
    "SimSession",
    "SimTurn",
    "SimulationError",
    "SimulationResult",
    "StockPolicy",
    "fits",
    "repeated",
    "run",
    "summarise",
]
