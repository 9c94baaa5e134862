"""Text tables: aligned columns, figures with as many digits as they deserve, a dash for what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_RESULT_ROWS = (
    ("task completion, mean", "completion_mean_s", "s"),
    ("task completion, p50", "completion_p50_s", "s"),
    ("task completion, p95", "completion_p95_s", "s"),
    ("worst turn", "worst_turn_s", "s"),
    ("time to first token, p50", "ttft_p50_s", "s"),
    ("time an output token, mean", "tpot_mean_s", "s"),
    ("prompt tokens from cache", "prompt_tokens_cached", ""),
    ("prompt tokens computed", "prompt_tokens_computed", ""),
    ("cached share, turns 2 on", "later_turns_hit_rate", "%"),
    ("output tokens a second", "output_tokens_per_s", ""),
    ("sessions complete / started", "sessions_complete", "sessions"),
    ("turns", "turns", ""),
    ("errors", "errors", ""),
    ("forced replies that differ", "forced_mismatches", ""),
    ("wall time", "wall_s", "s"),
)


def result_table(result: Mapping[str, Any]) -> str:
    """The summary of one replay, a row a figure."""
    rows = []
    for label, key, unit in _RESULT_ROWS:
        value = result.get(key)
        if unit == "sessions":
            rows.append((label, f"{value} / {result.get('sessions')}"))
        elif unit == "%":
            rows.append((label, "-" if value is None else f"{100 * value:.1f} %"))
        else:
            rows.append((label, figure(value) + (f" {unit}" if unit and value is not None else "")))
    text = render(("", "measured"), rows)
    known, answered = result["cached_tokens_turns"], result["turns"] - result["errors"]
    if known == 0:
        text += f"\ncached tokens: {result['cached_tokens_source']}"
    elif known < answered:
        text += f"\ncached tokens: known of {known} of {answered} turns only ({result['cached_tokens_source']})"
    kinds = result.get("errors_by_kind")
    if kinds:
        text += "\nerrors: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return text


def figure(value: float | int | None) -> str:
    """Three to four significant digits; whole numbers whole; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3g}"


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column left, the others right, a rule below the header."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, tuple("-" * w for w in widths), *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)
