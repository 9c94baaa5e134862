"""The record of one simulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentinfer.radix_ext.simulator.tally import Tally


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Seconds are simulated: of a session from its first arrival to its last reply, of a turn from arrival to reply.

    `recomputed_share`: prompt tokens that were computed although they had been before, of all prompt tokens.
    `hit_rate`: prompt tokens that were not computed, of all; `host_hit_rate`: those that came from the host tier.
    """

    sessions_per_hour: float
    completion_mean_s: float
    completion_p50_s: float
    completion_p95_s: float
    turn_mean_s: float
    turn_p99_s: float
    worst_turn_s: float
    worst_wait_s: float
    recomputed_share: float
    hit_rate: float
    host_hit_rate: float
    sessions: int
    turns: int
    prompt_tokens: int
    computed_tokens: int
    output_tokens: int
    evicted_tokens: int
    retractions: int
    decode_steps: int
    prefill_chunks: int
    plans: int
    busy_share: float
    simulated_s: float


def summarise(tally: Tally, simulated_s: float, replicas: int = 1) -> SimulationResult:
    """Of a simulation in which at least one session completed."""
    found = tally.hit_tokens + tally.loaded_tokens
    return SimulationResult(
        sessions_per_hour=len(tally.completions_s) / simulated_s * 3600,
        completion_mean_s=float(np.mean(tally.completions_s)),
        completion_p50_s=float(np.percentile(tally.completions_s, 50)),
        completion_p95_s=float(np.percentile(tally.completions_s, 95)),
        turn_mean_s=float(np.mean(tally.turns_s)),
        turn_p99_s=float(np.percentile(tally.turns_s, 99)),
        worst_turn_s=max(tally.turns_s),
        worst_wait_s=max(tally.waits_s),
        recomputed_share=tally.recomputed_tokens / tally.prompt_tokens,
        hit_rate=found / tally.prompt_tokens,
        host_hit_rate=tally.loaded_tokens / tally.prompt_tokens,
        sessions=len(tally.completions_s),
        turns=len(tally.turns_s),
        prompt_tokens=tally.prompt_tokens,
        computed_tokens=tally.prompt_tokens - found,
        output_tokens=tally.output_tokens,
        evicted_tokens=tally.evicted_tokens,
        retractions=tally.num_retractions,
        decode_steps=tally.num_decode_steps,
        prefill_chunks=tally.num_chunks,
        plans=tally.num_plans,
        busy_share=tally.busy_s / (simulated_s * replicas),
        simulated_s=simulated_s,
    )
