"""One simulation: options in, a record for JSON out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from agentinfer.clock import Clock, SystemClock
from agentinfer.commands.simulate.policies import PolicyName, settings_for
from agentinfer.commands.simulate.sessions import Workload, choose
from agentinfer.radix_ext.simulator import EngineCosts, SimulationError, run, summarise


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """`live_sessions` are those of all replicas together; tokens are those of one.

    `sessions` None takes each of the trace once; `seed` None takes them in the trace's order. `max_wait_s` and
    `settings`, by name, are the agent policy's.
    """

    live_sessions: int
    kv_tokens: int
    replicas: int = 1
    sessions: int | None = None
    costs: EngineCosts = field(default_factory=EngineCosts)
    host_kv_tokens: int = 0
    max_wait_s: float | None = None
    settings: Mapping[str, str | float | None] = field(default_factory=dict)
    seed: int | None = None


def simulate(
    workload: Workload, policy: PolicyName, options: SimulationOptions, clock: Clock | None = None
) -> dict[str, Any]:
    """The record of one policy on one workload. Raises SimulationError where nothing can be simulated."""
    clock = clock or SystemClock()
    chosen = choose(workload.sessions, options.sessions, options.seed, options.kv_tokens)
    if not chosen.sessions:
        longest = min(session.longest_context_tokens for session in workload.sessions)
        raise SimulationError(
            f"{workload.name}: none of its sessions fits into {options.kv_tokens} KV tokens; the shortest has a "
            f"context of {longest} tokens: give more --kv-tokens"
        )
    settings = settings_for(options.costs, options.max_wait_s, options.settings)
    begun_s = clock.monotonic_s()
    tally, simulated_s, policies = run(
        chosen.sessions,
        options.live_sessions,
        options.kv_tokens,
        lambda _: policy.make(options.kv_tokens, settings),
        options.costs,
        options.replicas,
        options.host_kv_tokens,
    )
    wall_s = clock.monotonic_s() - begun_s
    return {
        "policy": policy.given,
        **asdict(summarise(tally, simulated_s, options.replicas)),
        "too_long": chosen.too_long,
        "live_sessions": options.live_sessions,
        "kv_tokens": options.kv_tokens,
        "host_kv_tokens": options.host_kv_tokens,
        "replicas": options.replicas,
        "seed": options.seed,
        "settings": asdict(settings) if policy.eviction is None else None,
        "policy_says": [_finite(each.snapshot(simulated_s)) for each in policies],
        "trace": {"name": workload.name, "sha256": workload.sha256, "token_counts": workload.token_counts},
        "costs": asdict(options.costs),
        "agentinfer": metadata.version("agentinfer"),
        "wall_s": wall_s,
    }


def _finite(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
