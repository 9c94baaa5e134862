"""The sections on live speculation of the measurements page."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import conditions, quartiles, table


def spec_live(run: Any) -> str:
    rows = []
    for row in run["rows"]:
        figures = row["variants"]
        ngram = min((n for n in figures if n.startswith("ngram")), key=lambda n: float(figures[n]["tpot_mean_s"]))
        shown = {"off": figures["off"], ngram: figures[ngram], "agent_sam": figures["agent_sam"]}
        rows.append(
            [
                row["concurrency"],
                " / ".join(f"{1000 * each['tpot_mean_s']:.1f}" for each in shown.values()),
                quartiles(row["tpot_speedup_over_off"]),
                quartiles(row[f"tpot_speedup_over_{ngram}"]),
                " / ".join(f"{each['ttft_p50_s']:.2f}" for each in shown.values()),
                " / ".join(f"{each['completion_mean_s']:.1f}" for each in shown.values()),
            ]
        )
    heads = [
        "sessions at once",
        "ms a token: off / NGRAM / AGENT_SAM",
        "AGENT_SAM over off, by turn",
        "over NGRAM, by turn",
        "TTFT p50 s",
        "session s",
    ]
    ngram = [name for row in run["rows"] for name in row["variants"] if name.startswith("ngram")]
    widths = sorted({int(name.partition("_")[2]) for name in ngram})
    best = f"run with {widths[0]} draft tokens" if len(widths) == 1 else f"in each row the best of {widths} tokens"
    text = (
        f"Recorded sessions of `{run['trace']['name']}` with forced replies, {run['dtype']}, threads a server: "
        f"{run['threads']}; paired: every session on each server in turn, none twice. NGRAM is {best}. Ratios are "
        "medians (quartiles) over turns; below 1 we are slower."
    )
    return f"## Speculation on a live server\n\n{text}\n\n{table(heads, rows)}\n`{run['command']}`{conditions(run)}\n"


def unrepeated(run: Any) -> str:
    rows = [
        [
            row["concurrency"],
            " / ".join(f"{1000 * row['variants'][name]['tpot_mean_s']:.1f}" for name in ("off", "agent_sam")),
            quartiles(row["tpot_speedup_over_off"]),
        ]
        for row in run["rows"]
    ]
    heads = ["sessions at once", "ms a token: off / AGENT_SAM", "AGENT_SAM over off, by turn"]
    text = "Sessions of random words (`benchmarks.unrepeated`), where no draft can help: what speculation costs there."
    made = f"`{run['command']}`{conditions(run)}"
    return f"## Speculation where nothing repeats\n\n{text}\n\n{table(heads, rows)}\n{made}\n"
