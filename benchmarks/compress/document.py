"""The figures of docs/compress.md, made from the results compress_offline.json and, where there, compress_live.json.

python -m benchmarks.compress.document        rewrites the generated part of docs/compress.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import conditions, sessions, table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "compress.md"
BEGIN, END = "<!-- figures:begin -->\n", "<!-- figures:end -->"

_CARRIED = ("variant", "last prompt", "saved, a session", "all prompts", "saved, a session")
_COMPUTED = (
    "variant",
    "on the agent's path",
    "of it in swap turns",
    "in the background",
    "read for notes",
    "swaps",
    "swap turn warm",
    "below 95%",
    "turns waited",
    "tokens waited for",
)
_FACTS = ("variant", "needed", "in the prompt", "by id", "lost", "own words lost")


def section(result: Mapping[str, Any], live: Mapping[str, Any] | None) -> str:
    """The generated part of docs/compress.md."""
    variants = "\n".join(f"- `{name}`: {text}" for name, text in result["variants"].items())
    parts = [
        "### Offline",
        f"Counted by `benchmarks.compress` on recorded sessions, tokens by the {result['token_counts']}, an ideal "
        "prefix cache of each session, notes extracted without a model and there one turn after they were asked for. "
        "Recorded replies stay as they are, so what a shorter memory changes in an agent's behaviour is not in these "
        "figures. That ours loses hardly a fact is by construction, as every result taken is named; how many are in "
        "the prompt without reading again is what the notes are worth.",
        variants,
        *(_group(group, result["long_tokens"]) for group in result["groups"]),
        f"`{result['command']}`",
    ]
    if live is not None:
        parts += ["### Live", *_live(live)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def with_section(document: str, made: str) -> str:
    """The document with its generated part replaced. Raises ValueError where the marks are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/compress.md: expected the marks {BEGIN.strip()} and {END} around its figures")
    return before + begin + made + end + after


def _group(group: Mapping[str, Any], long_tokens: int) -> str:
    name = "a made up session" if group["trace"] == "sample" else f"`{group['trace']}`"
    which = "all sessions" if group["kind"] == "all" else f"sessions of at least {long_tokens:,} tokens"
    rows = group["rows"]
    parts = [
        f"#### {name}, {which}",
        f"{group['sessions']} sessions, {group['turns']:,} turns. Tokens carried:",
        table(_CARRIED, map(_carried, rows)),
        "Prompt tokens computed:",
        table(_COMPUTED, map(_computed, rows)),
        "Facts that replies use and whose first source is gone from the prompt (uses, counted by turn):",
        table(_FACTS, map(_facts, rows)),
        f"The notes of `ours` have {group['note_anchors']:,} numbers, names, paths and URLs; "
        f"{group['invented_anchors']} of them are not in the result that the line names.",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts)


def _carried(row: Mapping[str, Any]) -> list[str]:
    return [
        f"`{row['variant']}`",
        f"{row['last']:,}",
        _percent(row["saved_last"]),
        f"{row['carried']:,}",
        _percent(row["saved_carried"]),
    ]


def _computed(row: Mapping[str, Any]) -> list[str]:
    warm = row["warm_share"]
    return [
        f"`{row['variant']}`",
        *(f"{row[key]:,}" for key in ("computed", "at_swaps", "background", "distil", "swaps")),
        "" if warm is None else f"{_percent(warm)}, least {100 * row['warm_share_least']:.0f}%",
        str(row["swaps_under_95_percent_warm"]),
        *(f"{row[key]:,}" for key in ("waits", "waited")),
    ]


def _facts(row: Mapping[str, Any]) -> list[str]:
    needed = row["facts_needed"]
    kept = [row["facts_present"], row["facts_retrievable"], row["facts_lost"]]
    shown = [f"{count:,} ({100 * count / needed:.1f}%)" if needed else "0" for count in kept]
    return [f"`{row['variant']}`", f"{needed:,}", *shown, f"{row['own_words_lost']:,}"]


def _percent(figure: Mapping[str, Any]) -> str:
    """Median and quartiles of shares."""
    return f"{100 * figure['median']:.1f}% ({100 * figure['q1']:.1f} to {100 * figure['q3']:.1f})"


def _live(live: Mapping[str, Any]) -> list[str]:
    heads = (
        "server",
        "session s",
        "worst turn s",
        "prompt tokens",
        "saved",
        "last prompts saved",
        "computed on the path",
        "warmed behind it",
        "swap turns",
        "their prompts cached, median and least",
        "a turn against its twin",
        "slower turns",
    )
    text = (
        f"{sessions(dict(live))} on live servers with forced replies, "
        f"{live['model']}, {live['dtype']}, {live['live_sessions']} at once on each, all servers at the same time; "
        f"a tool takes {live['gap_s']:g} s. Turns are paired; a slower one took a tenth and 50 ms more than its twin, "
        "and the row `off`, where there are several runs, says how often that happens without compression."
    )
    return [text, table(heads, map(_live_row, live["rows"])), f"`{live['command']}`{conditions(dict(live))}"]


def _live_row(row: Mapping[str, Any]) -> list[str]:
    shares: Sequence[float] = sorted(row.get("swap_cached_shares", ()))
    ratio = row.get("latency_ratio")
    return [
        f"`{row['variant']}`",
        f"{row['completion_mean_s']:.1f}",
        f"{row['worst_turn_s']:.2f}",
        f"{row['prompt_tokens']:,.0f}",
        _share(row.get("saved_over_all")),
        _share(row.get("saved_at_the_end")),
        f"{row['prompt_tokens_computed']:,.0f}",
        f"{row['warmed_tokens']:,.0f}",
        str(row.get("swap_turns", "")),
        f"{100 * shares[len(shares) // 2]:.1f}%, {100 * shares[0]:.1f}%" if shares else "",
        f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})" if ratio else "",
        _share(row.get("slower_turns_share")),
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def load_if_there(name: str) -> dict[str, Any] | None:
    return load(name) if (RESULTS / name).exists() else None


def main() -> int:
    made = section(load("compress_offline.json"), load_if_there("compress_live.json"))
    try:
        text = with_section(DOCUMENT.read_text(encoding="utf-8"), made)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    DOCUMENT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
