"""How sensitive AgentSched is to each of its settings: all at their defaults but one, on simulated engines.

python -m benchmarks.sched_tuning --traces DIR [--jobs N] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final

from agentinfer.commands.simulate import SimulationOptions, Workload, parse_policies, read_workload, simulate
from agentinfer.errors import AgentInferError
from agentinfer.radix_ext.settings import SchedulingSettings
from benchmarks import sched_sim
from benchmarks.automaton import machine

SWEPT: Final[dict[str, tuple[float | None, ...]]] = {
    "max_wait_s": (60.0, 120.0, 300.0, 600.0),
    "visit_share": (0.02, 0.04, 0.16),
    "bound_refills": (2.0, 5.0, 20.0),
    "join_share": (0.7, 0.8, 0.95, 1.0),
    "growth_turns": (0.0, 2.0, 4.0),
    "park_ratio": (1.0, 3.0, 30.0, 1e9),
    "park_below": (0.0, 8.0, 64.0),
    "hit_weight": (0.0, 3.0),
    "need_weight": (0.0, 3.0),
    "wait_weight": (0.0, 3.0),
    "progress_weight": (0.0, 2.0),
    "parent_weight": (0.0, 3.0),
    "price_max": (0.0, 16.0),
    "price_slope": (1.0, 16.0),
}
KEPT: Final = (
    "sessions_per_hour",
    "completion_mean_s",
    "completion_p95_s",
    "worst_turn_s",
    "recomputed_share",
    "hit_rate",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A trace under a load."""

    name: str
    trace: str
    live_sessions: int
    sessions: int
    max_gap_s: float | None


CASES: Final = (
    Case("swe_dev, 32 live", "swe_dev.jsonl.xz", 32, sched_sim.SESSIONS, None),
    Case(
        *("coding_timing, 32 live", "coding_timing.jsonl.xz"),
        *(sched_sim.CODING_LIVE, sched_sim.CODING_SESSIONS, sched_sim.CODING_MAX_GAP_S),
    ),
)


def check_swept() -> None:
    """Every setting is swept but the engine's speed, which is no choice. Raises AssertionError naming the others."""
    choices = {field.name for field in fields(SchedulingSettings)} - {"prefill_tokens_per_s"}
    assert choices == set(SWEPT), f"swept and known settings differ: {choices ^ set(SWEPT)}"


def row(traces: Path, case: Case, changed: dict[str, float | None]) -> dict[str, Any]:
    workload = _workload(traces, case)
    kv_tokens = sched_sim.KV_TOKENS
    if case.max_gap_s is not None:
        kv_tokens = sched_sim.half_of_what_they_hold(workload.sessions[: case.sessions], case.live_sessions)
    options = SimulationOptions(case.live_sessions, kv_tokens, sessions=case.sessions, settings=changed)
    record = simulate(workload, parse_policies("agent")[0], options)
    return {"case": case.name, "changed": changed, **{key: record[key] for key in KEPT}}


def measure(traces: Path, jobs: int, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """The defaults first, then each setting's values in turn; for every case."""
    check_swept()
    changes: list[dict[str, float | None]] = [{}]
    changes += [{name: value} for name, values in SWEPT.items() for value in values]
    rows = []
    with ProcessPoolExecutor(jobs) as pool:
        futures = [pool.submit(row, traces, case, changed) for case in cases for changed in changes]
        for future in futures:
            rows.append(future.result())
            made = rows[-1]
            shown = ", ".join(f"{key}={value}" for key, value in made["changed"].items()) or "defaults"
            print(
                f"{made['case']}, {shown}: {made['sessions_per_hour']:.1f}/h, mean {made['completion_mean_s']:.0f} s, "
                f"worst turn {made['worst_turn_s']:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    defaults = {field.name: getattr(SchedulingSettings(), field.name) for field in fields(SchedulingSettings)}
    return {"defaults": defaults, "rows": rows}


@cache
def _workload(traces: Path, case: Case) -> Workload:
    return read_workload(str(traces / case.trace), max_gap_s=case.max_gap_s)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Sweep the settings of AgentSched one at a time.")
    parser.add_argument("--traces", default=os.environ.get("AGENTINFER_TRACES"), help="default: $AGENTINFER_TRACES")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="simulations at once (default 1)")
    parser.add_argument("--json", metavar="OUT", help="write all figures")
    args = parser.parse_args(arguments)
    if not args.traces:
        parser.error("no recorded sessions: pass --traces DIR or set AGENTINFER_TRACES")
    try:
        found = measure(Path(args.traces), args.jobs)
    except AgentInferError as error:
        print(error, file=sys.stderr)
        return 2
    command = (
        "python -m benchmarks.sched_tuning --traces $AGENTINFER_TRACES --json benchmarks/results/sched_tuning.json"
    )
    text = json.dumps({"command": command, "machine": machine(), **found}, indent=1)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
