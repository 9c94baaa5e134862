"""How far the simulator is off: what it predicts for a live comparison against what that comparison measured.

    agentinfer calibrate --url URL --json costs.json
    python -m benchmarks.sched_validation --costs costs.json --out benchmarks/results/sched_validation.json

The live run's own turns, with their tokens and gaps, are simulated under its policies, caches and number of sessions,
at the costs measured on the same engine. Predicted are seconds, and the ratios between policies, which matter more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentinfer.commands.simulate.policies import parse_policies
from agentinfer.commands.simulate.run import SimulationOptions, simulate
from agentinfer.commands.simulate.sessions import Workload
from agentinfer.radix_ext.simulator import SimSession, SimTurn
from agentinfer.radix_ext.simulator.costs import load

# The live comparison's policies by the simulator's names; the session radix cache is not simulated.
NAMES = {
    "fcfs": "fcfs",
    "lpm": "lpm",
    "hrrn": "hrrn",
    "sjf": "shortest-prefill-first",
    "fcfs_tlru": "fcfs+tlru",
    "lpm_tlru": "lpm+tlru",
    "agent": "agent",
}
PREDICTED = ("completion_mean_s", "completion_p95_s", "worst_turn_s", "hit_rate")


def sessions_of(cell: dict[str, Any]) -> tuple[SimSession, ...]:
    """The sessions of a live cell, in the order in which they began, with the gaps that their clients left."""
    turns: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for turn in cell["samples"]["turns"]:
        turns[turn["session"]].append(turn)
    began = sorted(turns.items(), key=lambda each: each[1][0]["started_s"])
    return tuple(SimSession(name, tuple(_turns(played))) for name, played in began)


def _turns(played: list[dict[str, Any]]) -> list[SimTurn]:
    made: list[SimTurn] = []
    context = 0
    for turn, following in zip(played, [*played[1:], None], strict=True):
        gap_s = 0.0 if following is None else following["started_s"] - turn["started_s"] - turn["latency_s"]
        kept = min(context, turn["prompt_tokens"] - 1)
        made.append(SimTurn(kept, turn["prompt_tokens"] - kept, turn["output_tokens"], max(0.0, gap_s), "shell"))
        context = turn["prompt_tokens"] + turn["output_tokens"]
    return made


def compare(live: dict[str, Any], costs_name: str) -> list[dict[str, Any]]:
    """A row for each oversubscription and policy: measured, predicted, and predicted by measured."""
    longest = max(turn["output_tokens"] for cell in live["cells"] for turn in cell["samples"]["turns"])
    # Forced requests say how much they will say, and the engine reserves no more room than that.
    costs = replace(load(costs_name), reserved_output_tokens=longest)
    rows = []
    for level in sorted({cell["oversubscription"] for cell in live["cells"]}):
        for policy, name in NAMES.items():
            cells = [c for c in live["cells"] if c["oversubscription"] == level and c["policy"] == policy]
            if not cells:
                continue
            workload = Workload(live["trace"]["name"], live["trace"]["sha256"], sessions_of(cells[0]), "as served")
            options = SimulationOptions(live["workload"]["live_sessions"], cells[0]["kv_tokens"], costs=costs)
            found = simulate(workload, parse_policies(name)[0], options)
            measured = {key: statistics.fmean(cell[key] for cell in cells) for key in PREDICTED}
            measured["hit_rate"] = statistics.fmean(map(_hit_rate, cells))
            predicted = {key: found[key] for key in PREDICTED}
            ratio = {key: predicted[key] / measured[key] if measured[key] else None for key in PREDICTED}
            where = {"oversubscription": level, "policy": policy, "kv_tokens": cells[0]["kv_tokens"]}
            rows.append({**where, "measured": measured, "predicted": predicted, "predicted_by_measured": ratio})
    return rows


def _hit_rate(cell: dict[str, Any]) -> float:
    """Cached by prompt tokens over all turns, first ones included, as the simulator counts."""
    turns = cell["samples"]["turns"]
    return sum(turn["cached_tokens"] or 0 for turn in turns) / sum(turn["prompt_tokens"] for turn in turns)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and largest error: of completion times, of hit rates, and of the gain over fcfs at the same level."""
    completion = [abs(row["predicted_by_measured"]["completion_mean_s"] - 1.0) for row in rows]
    hits = [abs(row["predicted"]["hit_rate"] - row["measured"]["hit_rate"]) for row in rows]
    gains = []
    for row in rows:
        base = next(r for r in rows if r["oversubscription"] == row["oversubscription"] and r["policy"] == "fcfs")
        if row is not base:
            by = {
                side: base[side]["completion_mean_s"] / row[side]["completion_mean_s"]
                for side in ("measured", "predicted")
            }
            gains.append(abs(by["predicted"] / by["measured"] - 1.0))
    pick = lambda errors: {"mean": statistics.fmean(errors), "most": max(errors)}  # noqa: E731
    return {"completion_mean": pick(completion), "hit_rate": pick(hits), "gain_over_fcfs": pick(gains)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", type=Path, default=Path("benchmarks/results/sched_live.json"))
    parser.add_argument("--costs", required=True, help="what `agentinfer calibrate` wrote for the same engine")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sched_validation.json"))
    arguments = parser.parse_args()
    live = json.loads(arguments.live.read_text())
    rows = compare(live, arguments.costs)
    for row in rows:
        shown = [
            f"{side} {row[side]['completion_mean_s']:.1f} s, {row[side]['hit_rate']:.2f} cached"
            for side in ("measured", "predicted")
        ]
        print(f"{row['oversubscription']:g}x {row['policy']:10} {'; '.join(shown)}")
    result = {
        "command": " ".join(["python -m benchmarks.sched_validation", *sys.argv[1:]]),
        "live": {"machine": live["machine"], "command": live["command"]},
        "calibration": json.loads(Path(arguments.costs).read_text()),
        "error": summary(rows),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["error"]))


if __name__ == "__main__":
    main()
