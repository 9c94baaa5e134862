"""docs/measurements.md, made from the JSON files under benchmarks/results/: no figure of the docs is typed by hand.

python -m benchmarks.measurements > docs/measurements.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import sched_host, spec_document
from benchmarks.drafting import document as drafting
from benchmarks.sched_live import document as sched_document
from benchmarks.tables import conditions, quartiles, spread, table

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
        _section(results / "spec_live.json", spec_document.spec_live),
        _section(results / "spec_live_unrepeated.json", spec_document.unrepeated),
        _section(results / "sched_live.json", sched_document.comparison),
        _section(results / "sched_live_mixed.json", sched_document.mixed),
        _section(results / "sched_live_parity.json", sched_document.parity),
        _section(results / "sched_host.json", sched_host.section),
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
        f"- `{name}`: `{run['provenance']['command']}`" + conditions(run["provenance"]) for name, run in runs
    )
    text = "Recorded sessions with forced replies against the live server with the embedded model, on two CPU cores."
    return f"## Recorded sessions on a live server\n\n{text}\n\n{table(heads, rows)}\n{commands}\n"


def _cpu_attention(run: Any) -> str:
    rows = [_attention_row(case) for case in run["results"]]
    heads = ["case", "dtype", "ours ms", "`torch_native` ms", "speed-up, median (quartiles)"]
    text = (
        f"Our CPU attention against SGLang's `torch_native`, attention alone over {run['shape']['layers']} layers, "
        f"paired, {run['repeats']} repeats, {run['threads']} thread. Below 1 we are slower: in float32 short cases pay "
        "for results that do not depend on batch and cache. `torch_native` has no speculative verification."
    )
    return f"## Attention without a GPU\n\n{text}\n\n{table(heads, rows)}\n`{run['command']}`\n"


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
            spread(row["session_build_ns_per_token"]),
            spread(row["store_build_ns_per_token"]),
            spread(row["match_ns_per_token"]),
            spread(row["decode_step_ns_per_call"]),
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
    return f"## Suffix automaton\n\n{text}\n\n{table(heads, rows)}\n`{run['command']}`\n"


def _drafting(results: Path) -> str:
    heads, rows = drafting.table(results)
    if not rows:
        return ""
    return f"{_DRAFTING}\n{table(heads, rows)}\n" + "\n".join(drafting.commands(results)) + "\n"


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
    return f"## Context store\n\n{text}\n\n{table(heads, rows)}\n`{run['command']}`\n"


def _kernels(run: Any) -> str:
    rows = []
    for row in run["rows"]:
        peers = {name: ratio for name, ratio in row["times_ours"].items() if name != "reference"}
        axes = ", ".join(f"{name} {size:,}" for name, size in row["axes"].items())
        for peer, ratio in peers.items():
            rows.append(
                [row["op"], row["case"], axes, f"{row['microseconds']['ours']['median']:,.0f}", peer, quartiles(ratio)]
            )
    heads = ["op", "case", "shape", "ours us", "beside", "its time over ours"]
    text = (
        f"Verification on the CPU path, {run['threads']} thread, paired; above 1 we are faster. The stand-in is our "
        "own torch version of an op that SGLang has for GPUs only; it is given the tree's mask, which ours makes."
    )
    return (
        f"## Kernels\n\n{text}\n\n{table(heads, rows)}\n`{run['command']}` (load average {run['load_average']:.1f})\n"
    )


def _section(path: Path, made_from: Callable[[Any], str]) -> str:
    """Nothing where there is no such file."""
    return made_from(_read(path)) if path.exists() else ""


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.stdout.write(page())
