"""Engines whose times can be computed by hand, sessions in one line, and policies that do nothing clever."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from agentinfer.radix_ext.facade import Policy
from agentinfer.radix_ext.policy import AgentPolicy
from agentinfer.radix_ext.settings import SchedulingSettings
from agentinfer.radix_ext.simulator import (
    EVICTIONS,
    EngineCosts,
    SharedSegment,
    SimSession,
    SimTurn,
    StockPolicy,
    run,
    summarise,
)
from agentinfer.radix_ext.simulator.result import SimulationResult
from agentinfer.radix_ext.simulator.tally import Tally

# A decode step takes 1 s, a prompt token 0.1 s, a request 0.5 s more; nothing is held in reserve.
PLAIN = EngineCosts(
    step_s=1.0,
    sequence_s=0.0,
    kv_token_s=0.0,
    prefill_tokens_per_s=10.0,
    request_s=0.5,
    chunk_tokens=100,
    max_running=8,
    reserved_output_tokens=0,
    running_reserve=0.0,
    load_tokens_per_s=100.0,
)


def turn(new: int, out: int, gap_s: float = 0.0, kept: int | None = None, children: tuple[SimSession, ...] = ()):
    """`kept` None keeps the whole context; `session` puts in how long that is."""
    return new, out, gap_s, kept, children


def session(name: str, *turns, shared: tuple[tuple[str, int], ...] = ()) -> SimSession:
    available = sum(tokens for _, tokens in shared)
    made = []
    for new, out, gap_s, kept, children in turns:
        kept = available if kept is None else kept
        made.append(SimTurn(kept, new, out, gap_s, None, children))
        available = made[-1].context_tokens
    return SimSession(name, tuple(made), tuple(SharedSegment(key, tokens) for key, tokens in shared))


def stock(order: str = "fcfs", eviction: str = "lru") -> Callable[[], Policy]:
    return lambda: StockPolicy(order, EVICTIONS[eviction])


def agent(kv_tokens: int, **settings: float | None) -> Callable[[], Policy]:
    return lambda: AgentPolicy(replace(SchedulingSettings(), **settings), kv_tokens)


def simulated(
    sessions: Iterable[SimSession],
    live: int = 8,
    kv_tokens: int = 10_000,
    policy: Callable[[], Policy] | None = None,
    costs: EngineCosts = PLAIN,
    replicas: int = 1,
    host: int = 0,
    check=None,
) -> tuple[SimulationResult, Tally]:
    make = policy or stock()
    tally, seconds, _ = run(sessions, live, kv_tokens, lambda _: make(), costs, replicas, host, check)
    return summarise(tally, seconds, replicas), tally
