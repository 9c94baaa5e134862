"""What the docs say about drafting, made from benchmarks/results/draft_quality_*.json.

python -m benchmarks.drafting.document        rewrites the calibration section and its picture under docs/
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drafting.drafter import BenchmarkError
from benchmarks.drafting.picture import draw

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "speculation.md"
PICTURE = ROOT / "docs" / "calibration.svg"
BEGIN, END = "<!-- calibration:begin -->\n", "<!-- calibration:end -->"
OURS = "agent_sam"
_PREFIX = "draft_quality_"
_LEFT_OUT = "_leave_one_out"


def table(results: Path = RESULTS) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the drafting table: a row a trace and drafter; no rows where nothing was measured."""
    heads = [
        "trace",
        "drafter",
        "tokens a step, new tasks",
        "repeated tasks",
        "memory of other tasks only",
        "session, worst to best",
        "drafted a step",
        "accepted of drafted",
        "us a token",
        "of that work",
        "peak MB",
    ]
    rows = []
    for trace, measured in _runs(results):
        left_out = {row["drafter"]: row for row in _rows(results / f"{_PREFIX}{trace}{_LEFT_OUT}.json")}
        for row in measured:
            new, repeated, alone = row["new_tasks"], row["repeated_tasks"], left_out.get(row["drafter"])
            sessions, accepted = new["session_tokens_per_step"], new["accepted_of_drafted"]
            rows.append(
                [
                    trace,
                    f"`{row['drafter']}`",
                    f"{row['tokens_per_step']:.2f}",
                    f"{repeated['tokens_per_step']:.2f}" if repeated else "–",
                    f"{alone['tokens_per_step']:.2f}" if alone else "–",
                    f"{sessions['worst']:.2f} to {sessions['best']:.2f}",
                    f"{row['drafted_per_step']:.1f}",
                    "–" if accepted is None else f"{100 * accepted:.0f}%",
                    f"{row['all_in_us_per_token']:.1f}",
                    f"{new['cpu_us_per_token']:.1f}",
                    f"{row['peak_rss_mb']:.0f}",
                ]
            )
    return heads, rows


def commands(results: Path = RESULTS) -> list[str]:
    """How each file was made, and under which conditions."""
    lines = []
    for path in sorted(results.glob(f"{_PREFIX}*.json")):
        for text in dict.fromkeys(_origin(row) for row in _rows(path)):
            lines.append(f"- {text}")
    return lines


def calibrations(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Our drafter's calibration by trace."""
    found = {}
    for trace, measured in _runs(results):
        for row in measured:
            if row["drafter"] == OURS and row["calibration"]:
                found[trace] = row["calibration"]
    return found


def section(found: Mapping[str, dict[str, Any]]) -> str:
    """The generated part of docs/speculation.md."""
    lines = [
        "| trace | drafted nodes | mean gap a node | expected tokens a step | emitted |",
        "|---|---|---|---|---|",
    ]
    for trace, each in found.items():
        nodes = sum(bin_["drafted"] for bin_ in each["nodes"])
        emitted = sum(bin_["steps"] * bin_["tokens"] for bin_ in each["steps"]) / sum(s["steps"] for s in each["steps"])
        expected = each["expected_tokens_per_step"]
        lines.append(f"| {trace} | {nodes:,} | {each['mean_gap']:.3f} | {expected:.2f} | {emitted:.2f} |")
    picture = "![Estimated chance against acceptance by node, expected against emitted tokens by step](calibration.svg)"
    return "\n".join([*lines, "", picture, ""])


def with_section(document: str, made: str) -> str:
    """The document with its generated part replaced. Raises BenchmarkError where the marks are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchmarkError(f"docs/speculation.md: expected the marks {BEGIN.strip()} and {END} around its figures")
    return before + begin + made + end + after


def _runs(results: Path) -> Iterable[tuple[str, Sequence[dict[str, Any]]]]:
    for path in sorted(results.glob(f"{_PREFIX}*.json")):
        if not path.stem.endswith(_LEFT_OUT):
            yield path.stem.removeprefix(_PREFIX), _rows(path)


def _rows(path: Path) -> Sequence[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return rows


def _origin(row: dict[str, Any]) -> str:
    conditions = f" ({row['conditions']})" if "conditions" in row else ""
    return f"`{row['command']}`{conditions}"


def main() -> int:
    found = calibrations()
    try:
        DOCUMENT.write_text(with_section(DOCUMENT.read_text(encoding="utf-8"), section(found)), encoding="utf-8")
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    PICTURE.write_text(draw(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
