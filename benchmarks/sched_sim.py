"""Scheduling policies on simulated engines: oversubscription, the frontier of throughput against waiting, a host tier.

    python -m benchmarks.sched_sim --traces DIR [--json OUT]

Times are simulated, so the figures are the same on every machine; only what a simulation took to run is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from agentinfer.commands.simulate import (
    PolicyName,
    SimulationOptions,
    Workload,
    parse_policies,
    read_workload,
    simulate,
)
from agentinfer.errors import AgentInferError
from agentinfer.radix_ext.simulator import SimSession
from benchmarks.automaton import machine

KV_TOKENS = 400_000
HOST_KV_TOKENS = 800_000
SESSIONS = 99
LIVE = (8, 16, 32, 64)
POLICIES = "fcfs,lpm,hrrn,spf,sjf,fcfs+tlru,lpm+tlru,ttl,agent"
SEEDS = (1, 2, 3, 4, 5)
WAITS_S = (15, 30, 60, 120, 240, 480, 960, 1920, 1_000_000)
CODING_SESSIONS = 200
CODING_LIVE = 32
CODING_MAX_GAP_S = 300.0

KEPT = (
    *("policy", "live_sessions", "sessions_per_hour", "completion_mean_s", "completion_p95_s", "worst_turn_s"),
    *("worst_wait_s", "turn_p99_s", "recomputed_share", "hit_rate", "host_hit_rate", "retractions", "busy_share"),
    *("sessions", "turns", "too_long", "kv_tokens", "host_kv_tokens", "seed", "wall_s"),
)


class Runner:
    """Simulates on one workload; `told` hears a line about each simulation."""

    def __init__(self, workload: Workload, told: Callable[[str], None] = lambda _: None) -> None:
        self._workload = workload
        self._told = told

    def row(self, policy: PolicyName, options: SimulationOptions) -> dict[str, Any]:
        record = simulate(self._workload, policy, options)
        row = {key: record[key] for key in KEPT}
        row["max_wait_s"] = options.max_wait_s
        self._told(
            f"{self._workload.name} {options.live_sessions} live, {policy.given}: {row['sessions_per_hour']:.1f}/h, "
            f"mean {row['completion_mean_s']:.0f} s, worst turn {row['worst_turn_s']:.0f} s"
        )
        return row

    def by_policy(self, live: Iterable[int], kv_tokens: int, host: int, sessions: int | None) -> list[dict[str, Any]]:
        return [
            self.row(policy, SimulationOptions(count, kv_tokens, sessions=sessions, host_kv_tokens=host))
            for count in live
            for policy in parse_policies(POLICIES)
        ]

    def by_order(self, live: int, kv_tokens: int, sessions: int) -> list[dict[str, Any]]:
        """The sessions in other orders."""
        return [
            self.row(policy, SimulationOptions(live, kv_tokens, sessions=sessions, seed=seed))
            for seed in SEEDS
            for policy in parse_policies("fcfs,lpm,agent")
        ]

    def frontier(self, live: int, host: int) -> list[dict[str, Any]]:
        (agent,) = parse_policies("agent")
        return [
            self.row(
                agent, SimulationOptions(live, KV_TOKENS, sessions=SESSIONS, host_kv_tokens=host, max_wait_s=wait_s)
            )
            for wait_s in WAITS_S
        ]


def half_of_what_they_hold(sessions: Sequence[SimSession], live: int) -> int:
    """KV tokens for twice as many live sessions as fit: half their time-weighted mean context, a turn taking 5 s."""
    weighted = [(turn.prompt_tokens, turn.gap_s + 5.0) for session in sessions for turn in session.turns]
    mean = sum(tokens * seconds for tokens, seconds in weighted) / sum(seconds for _, seconds in weighted)
    return int(live * mean / 2)


def measure(traces: Path, told: Callable[[str], None]) -> dict[str, Any]:
    swe = read_workload(str(traces / "swe_dev.jsonl.xz"))
    coding = read_workload(str(traces / "coding_timing.jsonl.xz"), max_gap_s=CODING_MAX_GAP_S)
    first = coding.sessions[:CODING_SESSIONS]
    coding_kv_tokens = half_of_what_they_hold(first, CODING_LIVE)
    on_swe, on_coding = Runner(swe, told), Runner(coding, told)
    return {
        "traces": [
            {"name": each.name, "sha256": each.sha256, "token_counts": each.token_counts} for each in (swe, coding)
        ],
        "costs": "reference",
        "swe_dev": on_swe.by_policy(LIVE, KV_TOKENS, 0, SESSIONS),
        "swe_dev_host": on_swe.by_policy(LIVE, KV_TOKENS, HOST_KV_TOKENS, SESSIONS),
        "swe_dev_orders": on_swe.by_order(32, KV_TOKENS, SESSIONS),
        "frontier": on_swe.frontier(32, 0),
        "frontier_host": on_swe.frontier(32, HOST_KV_TOKENS),
        "coding_timing": on_coding.by_policy((CODING_LIVE,), coding_kv_tokens, 0, CODING_SESSIONS),
        "coding_timing_orders": on_coding.by_order(CODING_LIVE, coding_kv_tokens, CODING_SESSIONS),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare scheduling policies on simulated engines.")
    parser.add_argument("--traces", default=os.environ.get("AGENTINFER_TRACES"), help="default: $AGENTINFER_TRACES")
    parser.add_argument("--json", metavar="OUT", help="write all figures")
    args = parser.parse_args(arguments)
    if not args.traces:
        parser.error("no recorded sessions: pass --traces DIR or set AGENTINFER_TRACES")
    try:
        found = measure(Path(args.traces), lambda line: print(line, file=sys.stderr, flush=True))
    except AgentInferError as error:
        print(error, file=sys.stderr)
        return 2
    command = [
        "python",
        "-m",
        "benchmarks.sched_sim",
        "--traces",
        "$AGENTINFER_TRACES",
        "--json",
        f"{_under(args.json)}",
    ]
    result = {"command": " ".join(command), "machine": machine(), **found}
    text = json.dumps(result, indent=1)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return 0


def _under(name: str | None) -> str:
    return shlex.quote(f"benchmarks/results/{Path(name).name}") if name else "OUT"


if __name__ == "__main__":
    sys.exit(main())
