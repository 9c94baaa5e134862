"""The figures of docs/collab.md, made from the results collab.json and, where there, collab_live.json.

python -m benchmarks.collab.document        rewrites the generated part of docs/collab.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.tables import conditions, quartiles, sessions, table

ROOT: Final = Path(__file__).parents[2]
RESULT: Final = ROOT / "benchmarks" / "results" / "collab.json"
LIVE: Final = RESULT.with_name("collab_live.json")
DOCUMENT: Final = ROOT / "docs" / "collab.md"
BEGIN, END = "<!-- evaluation:begin -->\n", "<!-- evaluation:end -->"

_POLICIES: Final = (
    "policy",
    "right % (95%)",
    "P(answer)",
    "large: steps %",
    "tokens %",
    "steps",
    "switches",
    "prefilled at switches",
    "of it before the result",
    "s cold",
    "s warm",
)
_COMPARED: Final = (
    "policy",
    "large steps %",
    "right %",
    "at random, right %",
    "difference (95%)",
    "switches at random",
)
_MODELS: Final = (
    "model",
    "steps",
    "right %",
    "check says TRUE %",
    "check tells right from wrong",
    "the reply's own probability does",
    "ms a token, prefill",
    "decode",
)


_LIVE_HEADS: Final = (
    "way",
    "session s",
    "against its twin",
    "a turn against its twin",
    "worst turn s",
    "prompt tokens computed",
    "switches",
    "unseen tokens at switches",
    "of them computed ahead",
)


def section(result: Mapping[str, Any], live: Mapping[str, Any] | None = None) -> str:
    """The generated part of docs/collab.md."""
    large, small = result["models"]["large"], result["models"]["small"]
    parts = [
        "## Evaluation",
        f"{result['tasks']} made-up tasks of 2 to 4 steps, {large} as the large and {small} as the small model on two "
        f"engines ({result['threads']} thread each); models of this size show how the policies differ, not what they "
        "are worth with able ones. A step is the most likely of the facts told so far, by the "
        "probability of its whole text; naming a person looks that person up, naming a place answers. Both models' "
        f"steps and checks were recorded once at the {result['nodes']:,} places that one of them leads to, and every "
        "policy is played on that record. Thresholds are fitted on one half of the tasks and used on the other.",
        table(_POLICIES, map(_policy, result["policies"])),
        "Seconds are estimates for a task: prefill and decoding on the critical path at the measured costs below, "
        "without requests' own overhead; warm means that what a switch needs was prefilled while the tool ran. "
        "P(answer): the right answer's probability among those that could be given at the last step.",
        f"Beside random switching at the same share of large steps ({result['random_seeds']} seeds; intervals over "
        "tasks):",
        table(_COMPARED, [_compared(row) for row in result["policies"] if "random" in row]),
        "What a check knows, over all recorded steps: how often a right step has the higher figure than a wrong one "
        "(0.5 is chance):",
        table(_MODELS, [_model(row, result) for row in result["models_steps"]]),
        f"`{result['command']}`",
        *([] if live is None else _live(live)),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def with_section(document: str, made: str) -> str:
    """The document with its generated part replaced. Raises ValueError where the marks are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/collab.md: expected the marks {BEGIN.strip()} and {END} around its evaluation")
    return before + begin + made + end + after


def measured() -> str:
    """The section of what is measured so far; empty where nothing is."""
    if not RESULT.exists():
        return ""
    live = json.loads(LIVE.read_text(encoding="utf-8")) if LIVE.exists() else None
    return section(json.loads(RESULT.read_text(encoding="utf-8")), live)


def _policy(row: Mapping[str, Any]) -> list[str]:
    return [
        row["policy"],
        _interval(row["accuracy"]),
        f"{row['p_answer']['mean']:.2f}",
        f"{100 * row['large_steps_share']:.0f}",
        f"{100 * row['large_tokens_share']:.0f}",
        f"{row['steps']:.1f}",
        f"{row['switches']:.2f}",
        f"{row['prefilled_at_switches']:.0f}",
        f"{row['of_it_before_the_result']:.0f}",
        f"{row['seconds']:.2f}",
        f"{row['seconds_warm']:.2f}",
    ]


def _compared(row: Mapping[str, Any]) -> list[str]:
    drawn = row["random"]
    return [
        row["policy"],
        f"{100 * row['large_steps_share']:.0f}",
        f"{100 * row['accuracy']['mean']:.1f}",
        f"{100 * drawn['accuracy']:.1f} (seeds {100 * drawn['accuracy_of_seeds']['low']:.1f} to "
        f"{100 * drawn['accuracy_of_seeds']['high']:.1f})",
        f"{100 * drawn['difference']['mean']:+.1f} ({100 * drawn['difference']['low']:+.1f} to "
        f"{100 * drawn['difference']['high']:+.1f})",
        f"{drawn['switches']:.2f}",
    ]


def _model(row: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    costs = result["costs"][row["model"]]
    return [
        f"{row['model']}: {result['models'][row['model']]}",
        f"{row['steps']:,}",
        f"{100 * row['right_share']:.0f}",
        f"{100 * row['said_true_share']:.0f}",
        _share(row["check_tells_right_from_wrong"]),
        _share(row["probability_tells_right_from_wrong"]),
        f"{1000 * costs['prefill_s']:.2f}",
        f"{1000 * costs['decode_s']:.1f}",
    ]


def _live(live: Mapping[str, Any]) -> list[str]:
    models = live["models"]
    return [
        "## On live engines",
        f"{sessions(dict(live))} with {live['turns']} turns and forced "
        f"replies on two engines, {models['large']} as the large and {models['small']} as the small model, bfloat16, "
        f"{live['threads']} thread each; a tool takes {live['gap_s']:g} s. `collab`, `collab_gaps` and `collab_cold` "
        "change places as often as the budgets allow: reading ahead at any time, only while tools run, and not at all. "
        "They are compared with the large model alone; "
        "`small_checked` is the small model with every step judged, compared with it alone, so its ratio is what "
        "checks and the process in front of the engines cost.",
        table(_LIVE_HEADS, map(_live_row, live["rows"])),
        f"`{live['command']}`{conditions(dict(live))}",
    ]


def _live_row(row: Mapping[str, Any]) -> list[str]:
    ratios = row.get("completion_ratios", ())
    prefilled = row.get("switch_prefilled_share")
    return [
        f"`{row['way']}`",
        f"{row['completion_mean_s']:.1f}",
        ", ".join(f"{ratio:.3f}" for ratio in ratios) or "–",
        quartiles(row["latency_ratio"]) if "latency_ratio" in row else "–",
        f"{row['worst_turn_s']:.2f}",
        f"{row['prompt_tokens_computed']:,.0f}",
        str(row.get("switches", "–")),
        f"{row['switch_unseen_tokens']:,}" if row.get("switches") else "–",
        "–" if prefilled is None else f"{100 * prefilled:.1f}%",
    ]


def _interval(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['mean']:.1f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def main() -> int:
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(with_section(text, measured()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
