"""What AgentSched can be told: the bound on waiting, the weights of the order, the room that admission leaves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """Defaults as tuned by `benchmarks.sched_tuning`, which also shows how sensitive the result is to each.

    `max_wait_s`: a held turn goes before all that arrived later once it has waited this long; None takes the shortest
    bound whose cost stays within `visit_share` of the engine's time (`fairness`), at least the time in which the engine
    computes `bound_refills` times what the cache holds.
    `join_share`: a session joins the working set while that fills at most this share of the cache; `growth_turns` of
    growth are reserved for each member (`working_set`).
    `park_ratio`: a member that is expected to be away this many times as long as recomputing it takes gives its place
    up to another, while fewer than `park_below` turns run or may.
    `hit_weight`, `need_weight`, `wait_weight`, `progress_weight`, `parent_weight`, `price_max`, `price_slope`: of the
    order among those that may go (`order`, `pressure`).
    `prefill_tokens_per_s`: the engine's speed, which turns tokens into seconds; `agentinfer calibrate` measures it.
    """

    max_wait_s: float | None = None
    visit_share: float = 0.06
    bound_refills: float = 15.0
    join_share: float = 0.93
    growth_turns: float = 1.0
    park_ratio: float = 10.0
    park_below: int = 3
    hit_weight: float = 1.0
    need_weight: float = 1.0
    wait_weight: float = 1.0
    progress_weight: float = 0.5
    parent_weight: float = 1.0
    price_max: float = 4.0
    price_slope: float = 4.0
    prefill_tokens_per_s: float = 14_000.0
