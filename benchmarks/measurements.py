"""docs/measurements.md, made from the JSON files under benchmarks/results/: no figure of the docs is typed by hand.

python -m benchmarks.measurements > docs/measurements.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drafting import document as drafting

RESULTS = Path(__file__).parent / "results"

_HEAD = """# Measurements

Made by `python -m benchmarks.measurements` from the files under `benchmarks/results/`, which hold the raw samples, the
machine and the command. These machines are small and shared: read ratios before seconds.
"""

_DRAFTING = """## Drafting, offline

Recorded replies as greedy truth, 16 tokens a verify step with the last verified one. A mean is over steps, the token
that prefill gives left out. Repeated tasks: another run of the task came before. Memory of other tasks only: the task
was never seen, all others were. Time is the drafter's on one thread: start of a turn, drafts, updates, end of a turn,
with waiting for threads of its own; "of that work" takes processor time instead where turns start and end.
"""


def page(results: Path = RESULTS) -> str:
    """The whole page. Raises KeyError where a result file lacks a figure that the page shows."""
    sections = [
        _HEAD,
        _replays(results),
        _section(results / "cpu_attention.json", _cpu_attention),
        _section(results / "automaton.json", _automaton),
        _drafting(results),
        _section(results / "spec_live.json", _spec_live),
        _section(results / "spec_live_unrepeated.json", _unrepeated),
        _section(results / "store.json", _store),
        _section(results / "kernels_cpu.json", _kernels),
    ]
    return "\n".join(section for section in sections if section)


def _replays(results: Path) -> str:
    runs = [(path.stem, _read(path)) for path in sorted(results.glob("replay_*.json"))]
    if not runs:
        return ""
    rows = [
        [
            f"`{name}`",
            f"{run['sessions_complete']} of {run['sessions']}",
            run["turns"],
            run["forced_mismatches"],
            f"{run['prompt_tokens_cached']:,} / {run['prompt_tokens_computed']:,}",
            f"{100 * run['later_turns_hit_rate']:.1f}%",
            f"{run['completion_mean_s']:.1f}",
            f"{run['completion_p95_s']:.1f}",
            f"{run['worst_turn_s']:.1f}",
            f"{run['ttft_p50_s']:.2f}",
            f"{1000 * run['tpot_mean_s']:.0f}",
        ]
        for name, run in runs
    ]
    heads = [
        "run",
        "sessions complete",
        "turns",
        "forced mismatches",
        "prompt tokens cached / computed",
        "cached, turn 2 on",
        "completion mean s",
        "p95 s",
        "worst turn s",
        "TTFT p50 s",
        "ms a token",
    ]
    commands = "\n".join(
        f"- `{name}`: `{run['provenance']['command']}`" + _conditions(run["provenance"]) for name, run in runs
    )
    text = "Recorded sessions with forced replies against the live server with the embedded model, on two CPU cores."
    return f"## Recorded sessions on a live server\n\n{text}\n\n{_table(heads, rows)}\n{commands}\n"


def _conditions(provenance: dict[str, Any]) -> str:
    return f" ({provenance['conditions']})" if provenance.get("conditions") else ""


def _cpu_attention(run: Any) -> str:
    rows = [_attention_row(case) for case in run["results"]]
    heads = ["case", "dtype", "ours ms", "`torch_native` ms", "speed-up, median (quartiles)"]
    text = (
        f"Our CPU attention against SGLang's `torch_native`, attention alone over {run['shape']['layers']} layers, "
        f"paired, {run['repeats']} repeats, {run['threads']} thread. Below 1 we are slower: in float32 short cases pay "
        "for results that do not depend on batch and cache. `torch_native` has no speculative verification."
    )
    return f"## Attention without a GPU\n\n{text}\n\n{_table(heads, rows)}\n`{run['command']}`\n"


def _attention_row(case: dict[str, Any]) -> list[str]:
    medians = {name: f"{1000 * seconds['median']:.2f}" for name, seconds in case["seconds"].items()}
    speedup = case.get("speedup")
    ratio = f"{speedup['median']:.2f} ({speedup['q1']:.2f} to {speedup['q3']:.2f})" if speedup else "–"
    return [case["case"]["name"], case["dtype"], medians["ours"], medians.get("stock", "–"), ratio]


def _automaton(run: Any) -> str:
    rows = [
        [
            row["trace"],
            f"{row['tokens']:,}",
            f"{row['by_session']['bytes_per_token']:.1f} / {row['one_store']['bytes_per_token']:.1f}",
            _spread(row["session_build_ns_per_token"]),
            _spread(row["store_build_ns_per_token"]),
            _spread(row["match_ns_per_token"]),
            _spread(row["decode_step_ns_per_call"]),
        ]
        for row in run["rows"]
    ]
    heads = [
        "trace",
        "tokens",
        "bytes a token, by session / one store",
        "build ns a token, by session",
        "one store",
        "match ns a token",
        "decode step ns",
    ]
    text = f"Median of {run['repeat']} runs (least to most)."
    return f"## Suffix automaton\n\n{text}\n\n{_table(heads, rows)}\n`{run['command']}`\n"


def _drafting(results: Path) -> str:
    heads, rows = drafting.table(results)
    if not rows:
        return ""
    return f"{_DRAFTING}\n{_table(heads, rows)}\n" + "\n".join(drafting.commands(results)) + "\n"


def _spec_live(run: Any) -> str:
    rows = []
    for row in run["rows"]:
        figures = row["variants"]
        ngram = min((n for n in figures if n.startswith("ngram")), key=lambda n: float(figures[n]["tpot_mean_s"]))
        shown = {"off": figures["off"], ngram: figures[ngram], "agent_sam": figures["agent_sam"]}
        rows.append(
            [
                row["concurrency"],
                " / ".join(f"{1000 * each['tpot_mean_s']:.1f}" for each in shown.values()),
                _ratio(row["tpot_speedup_over_off"]),
                _ratio(row[f"tpot_speedup_over_{ngram}"]),
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
    return f"## Speculation on a live server\n\n{text}\n\n{_table(heads, rows)}\n`{run['command']}`{_conditions(run)}\n"


def _unrepeated(run: Any) -> str:
    rows = [
        [
            row["concurrency"],
            " / ".join(f"{1000 * row['variants'][name]['tpot_mean_s']:.1f}" for name in ("off", "agent_sam")),
            _ratio(row["tpot_speedup_over_off"]),
        ]
        for row in run["rows"]
    ]
    heads = ["sessions at once", "ms a token: off / AGENT_SAM", "AGENT_SAM over off, by turn"]
    text = "Sessions of random words (`benchmarks.unrepeated`), where no draft can help: what speculation costs there."
    made = f"`{run['command']}`{_conditions(run)}"
    return f"## Speculation where nothing repeats\n\n{text}\n\n{_table(heads, rows)}\n{made}\n"


def _store(run: Any) -> str:
    shown = ("retrieved", "random", "most_recent", "everything")
    rows = [
        [
            row["trace"],
            f"{row['contexts']:,}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['bytes_if_whole_prompts_were_kept'] / 1e6:.0f}",
            *(f"{row['share_of_new_grams_found'][each]:.3f}" for each in shown),
        ]
        for row in run["worth"]
    ]
    heads = ["trace", "contexts", "MB", "MB with whole prompts", *(each.replace("_", " ") for each in shown)]
    cost = run["cost"]
    text = (
        f"What {run['k']} contexts of other tasks hold of a response that its own session does not: the share of "
        f'its new {run["n_gram"]}-grams, by how they are chosen, with equally many tokens. "Everything" is all. '
        f"Among {cost['contexts']:,} contexts one retrieval takes {cost['retrieve_cpu_ms']['p50']:.1f} ms of processor "
        f"time (p99 {cost['retrieve_cpu_ms']['p99']:.1f})."
    )
    return f"## Context store\n\n{text}\n\n{_table(heads, rows)}\n`{run['command']}`\n"


def _kernels(run: Any) -> str:
    rows = []
    for row in run["rows"]:
        peers = {name: ratio for name, ratio in row["times_ours"].items() if name != "reference"}
        axes = ", ".join(f"{name} {size:,}" for name, size in row["axes"].items())
        for peer, ratio in peers.items():
            rows.append(
                [row["op"], row["case"], axes, f"{row['microseconds']['ours']['median']:,.0f}", peer, _ratio(ratio)]
            )
    heads = ["op", "case", "shape", "ours us", "beside", "its time over ours"]
    text = (
        f"Verification on the CPU path, {run['threads']} thread, paired; above 1 we are faster. The stand-in is our "
        "own torch version of an op that SGLang has for GPUs only; it is given the tree's mask, which ours makes."
    )
    return (
        f"## Kernels\n\n{text}\n\n{_table(heads, rows)}\n`{run['command']}` (load average {run['load_average']:.1f})\n"
    )


def _section(path: Path, made_from: Callable[[Any], str]) -> str:
    """Nothing where there is no such file."""
    return made_from(_read(path)) if path.exists() else ""


def _ratio(figure: dict[str, float]) -> str:
    return f"{figure['median']:.2f} ({figure['q1']:.2f} to {figure['q3']:.2f})"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _spread(figure: dict[str, Any]) -> str:
    return f"{figure['median']:.0f} ({min(figure['samples']):.0f} to {max(figure['samples']):.0f})"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.stdout.write(page())
