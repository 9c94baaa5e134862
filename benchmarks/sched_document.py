"""What the docs say about simulated scheduling, made from benchmarks/results/sched_sim.json and sched_tuning.json.

python -m benchmarks.sched_document        rewrites the generated part and the picture of docs/scheduling.md
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sched_picture import draw
from benchmarks.tables import table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "scheduling.md"
PICTURE = ROOT / "docs" / "scheduling.svg"
BEGIN, END = "<!-- simulation:begin -->\n", "<!-- simulation:end -->"

_HEADS = ("live", "policy", "sessions/h", "completion mean s", "p95 s", "worst turn s", "recomputed", "hit rate")


def section(result: Mapping[str, Any], tuning: Mapping[str, Any]) -> str:
    """The generated part of docs/scheduling.md."""
    parts = [
        "![Sessions an hour against live sessions and against the worst wait](scheduling.svg)",
        f"99 sessions of `swe_dev` (its 66, some twice), recorded gaps, {_kv(result['swe_dev'])} KV tokens, the engine "
        "of preset `reference`. `spf` is SGLang's shortest-prefill-first, `sjf` the paper's shortest job first, `ttl` "
        "spares what was used within 2 s.",
        table(_HEADS, map(_row, result["swe_dev"])),
        f"With a host tier of {result['swe_dev_host'][0]['host_kv_tokens']:,} tokens, loaded at 200,000 tokens/s:",
        table(_HEADS, map(_row, result["swe_dev_host"])),
        _orders(result["swe_dev_orders"]),
        "The bound on waiting, `--max-wait-s`, against throughput at 32 live sessions (without it the policy chooses):",
        _frontier(result),
        f"{result['coding_timing'][0]['sessions']} sessions of `coding_timing` (token counts only, gaps cut to 300 s), "
        f"32 live, {_kv(result['coding_timing'])} KV tokens, which is half of what they hold:",
        table(_HEADS, map(_row, result["coding_timing"])),
        _orders(result["coding_timing_orders"]),
        f"`{result['command']}`",
        "### Sensitivity",
        "Each setting alone away from its default: sessions an hour / worst turn, in percent of those at the defaults.",
        _sensitivity(tuning),
        f"`{tuning['command']}`",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def with_section(document: str, made: str) -> str:
    """The document with its generated part replaced. Raises ValueError where the marks are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/scheduling.md: expected the marks {BEGIN.strip()} and {END} around its figures")
    return before + begin + made + end + after


def _row(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["live_sessions"]),
        f"`{row['policy']}`",
        f"{row['sessions_per_hour']:.1f}",
        f"{row['completion_mean_s']:,.0f}",
        f"{row['completion_p95_s']:,.0f}",
        f"{row['worst_turn_s']:,.0f}",
        f"{100 * row['recomputed_share']:.1f}%",
        f"{100 * row['hit_rate']:.1f}%",
    ]


def _orders(rows: Sequence[Mapping[str, Any]]) -> str:
    """How the agent policy compares in other orders of the sessions."""
    per_hour = {other: _ratios(rows, "agent", other, "sessions_per_hour") for other in ("fcfs", "lpm")}
    mean = {other: _ratios(rows, other, "agent", "completion_mean_s") for other in ("fcfs", "lpm")}
    return (
        f"In {len({row['seed'] for row in rows})} other orders of the sessions, 32 live, `agent` completes "
        f"{per_hour['fcfs']} times the sessions of `fcfs` an hour and {per_hour['lpm']} times those of `lpm`; a "
        f"session takes {mean['fcfs']} and {mean['lpm']} times as long with those on average (median, least to most)."
    )


def _ratios(rows: Sequence[Mapping[str, Any]], over: str, under: str, key: str) -> str:
    figures = {(row["seed"], row["policy"]): row[key] for row in rows}
    ratios = sorted(figures[seed, over] / figures[seed, under] for seed in {row["seed"] for row in rows})
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _frontier(result: Mapping[str, Any]) -> str:
    heads = ("bound s", "sessions/h", "worst wait s", "worst turn s", "with host tier: sessions/h", "worst wait s")
    rows = []
    for plain, hosted in zip(result["frontier"], result["frontier_host"], strict=True):
        bound = plain["max_wait_s"]
        rows.append(
            [
                f"{bound:g}" if bound < 1e5 else "never",
                f"{plain['sessions_per_hour']:.1f}",
                f"{plain['worst_wait_s']:,.0f}",
                f"{plain['worst_turn_s']:,.0f}",
                f"{hosted['sessions_per_hour']:.1f}",
                f"{hosted['worst_wait_s']:,.0f}",
            ]
        )
    return table(heads, rows)


def _sensitivity(tuning: Mapping[str, Any]) -> str:
    cases = list(dict.fromkeys(row["case"] for row in tuning["rows"]))
    defaults = {row["case"]: row for row in tuning["rows"] if not row["changed"]}
    changes: dict[tuple[str, float], dict[str, str]] = {}
    for row in tuning["rows"]:
        for change in row["changed"].items():
            base = defaults[row["case"]]
            rate = row["sessions_per_hour"] / base["sessions_per_hour"]
            worst = row["worst_turn_s"] / base["worst_turn_s"]
            changes.setdefault(change, {})[row["case"]] = f"{100 * rate:.0f} / {100 * worst:.0f}"
    rows = [
        [f"`{name}`", f"{tuning['defaults'][name] or 'own'}", f"{value:g}", *(cells[case] for case in cases)]
        for (name, value), cells in changes.items()
    ]
    return table(("setting", "default", "value", *cases), rows)


def _kv(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{rows[0]['kv_tokens']:,}"


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def main() -> int:
    result, tuning = load("sched_sim.json"), load("sched_tuning.json")
    try:
        text = with_section(DOCUMENT.read_text(encoding="utf-8"), section(result, tuning))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    DOCUMENT.write_text(text, encoding="utf-8")
    PICTURE.write_text(draw(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
