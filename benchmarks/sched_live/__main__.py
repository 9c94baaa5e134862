"""AgentSched against SGLang's own scheduling on live servers whose caches are too small for the sessions played.

    python -m benchmarks.sched_live --trace FILE --out benchmarks/results/sched_live.json

The same recorded sessions run in a closed loop with forced replies, on one server after another: each policy has its
own, started anew for each size of the cache, and both neighbours in time differ in the policy only. Oversubscription is
the number of live sessions times their mean context (prompt and reply, over all turns), by the tokens of the cache.
Cells already in the result file are kept if the settings are the same, so a comparison can be made in parts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from agentinfer.models import prepare
from agentinfer.replay.driver import LoopOptions
from agentinfer.replay.traces import read_trace
from benchmarks.cpu_engine import machine
from benchmarks.live_server import LiveServer
from benchmarks.sched_live import figures, workload
from benchmarks.sched_live.playing import Played, Stream, play
from benchmarks.sched_live.policies import BOUNDED, OURS, Policy, policies

MODEL = "smollm2-135m"
_SAME = ("trace", "model", "dtype", "threads", "seed", "workload", "flags", "common_flags")


def main() -> None:
    arguments = _arguments()
    # A terminated run must not leave servers behind; its cells so far are kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    tokenizer = Tokenizer.from_file(str(prepare(MODEL) / "tokenizer.json"))
    trace = read_trace(arguments.trace)
    cut = workload.Cut()
    work = workload.make(trace, tokenizer, cut, arguments.sessions, arguments.seed)
    steps = [_added(workload.turn_tokens(session, tokenizer)) for session in work.sessions]
    known = policies(round(sum(steps) / len(steps)), arguments.max_wait_s)
    report: dict[str, Any] = {
        "format": "agentinfer.benchmark.sched_live",
        "version": 1,
        "command": "",
        "trace": {"name": Path(trace.name).name, "sha256": trace.sha256},
        "model": MODEL,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "workload": {
            **asdict(cut),
            "sessions": arguments.sessions,
            "live_sessions": arguments.live,
            "context_tokens_mean": round(work.context_tokens, 1),
            "longest_turn_tokens": work.longest_tokens,
            "questions_per_s": arguments.questions_per_s,
        },
        "oversubscription": "live sessions x mean context over all turns (prompt and reply) / tokens of the cache",
        "flags": {name: " ".join(policy.flags) for name, policy in known.items()},
        "common_flags": " ".join(_common_flags(arguments)),
        "conditions": arguments.conditions,
        "machine": machine(),
        "rows": [],
        "cells": [],
    }
    _take_over(report, arguments.out)
    for repeat in range(arguments.repeats):
        for level in arguments.oversubscription:
            order = list(arguments.policies)
            # The place in the order moves, so that a machine that grows slower does not always slow the same one.
            turned = order[repeat % len(order) :] + order[: repeat % len(order)]
            for name in turned:
                where = {"policy": name, "oversubscription": level, "repeat": repeat}
                if any(where.items() <= each.items() for each in report["cells"]):
                    continue
                size = work.kv_tokens(arguments.live, level)
                load = os.getloadavg()[0]
                played = _play(arguments, name, known[name], work, size, tokenizer)
                measured = figures.cell(played)
                _require_sound(measured, name)
                report["cells"].append({**where, "kv_tokens": size, "load_average": round(load, 1), **measured})
                _show(report["cells"][-1])
                report["command"] = _command(arguments, report["cells"])
                report["rows"] = figures.rows(report["cells"], (OURS, BOUNDED))
                if arguments.questions_per_s:
                    report["table_10"] = figures.mixed_rows(report["cells"])
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trace", required=True, help="recorded sessions, as `agentinfer replay` takes them")
    add("--out", type=Path, default=Path("benchmarks/results/sched_live.json"))
    add("--policies", nargs="+", choices=list(policies(1)), default=list(policies(1)))
    add("--oversubscription", nargs="+", type=float, default=[0.8, 2.0, 4.0])
    add("--sessions", type=int, default=18)
    add("--live", type=int, default=16, help="sessions live at once")
    add("--repeats", type=int, default=1)
    add("--questions-per-s", type=float, default=0.0, help="one-turn questions besides, at random times")
    add("--max-wait-s", type=float, default=20.0, help="the bound on waiting of agent_bounded")
    add("--dtype", default="bfloat16")
    add("--threads", type=int, default=os.cpu_count() or 1, help="OMP_NUM_THREADS of each server")
    add("--seed", type=int, default=0)
    add("--conditions", help="what else the machine was doing, for the record")
    add("--log-dir", type=Path, default=Path("/tmp"))
    return parser.parse_args()


def _command(arguments: argparse.Namespace, cells: list[dict[str, Any]]) -> str:
    """What makes the whole file, in however many parts it was made and wherever traces and results lie."""
    given = vars(arguments)
    words = ["python -m benchmarks.sched_live", "--trace", f"$AGENTINFER_TRACES/{Path(arguments.trace).name}"]
    for name in ("sessions", "live", "questions_per_s", "max_wait_s", "threads", "seed"):
        words += [f"--{name.replace('_', '-')}", f"{given[name]:g}"]
    words += ["--policies", *dict.fromkeys(cell["policy"] for cell in cells)]
    levels = dict.fromkeys(cell["oversubscription"] for cell in cells)
    return " ".join([*words, "--oversubscription", *(f"{level:g}" for level in levels)])


def _common_flags(arguments: argparse.Namespace) -> list[str]:
    flags = ["--agentinfer-forced-replay", "--enable-cache-report", "--served-model-name", MODEL]
    return [*flags, "--dtype", arguments.dtype, "--max-running-requests", "16", "--chunked-prefill-size", "2048"]


def _play(
    arguments: argparse.Namespace,
    name: str,
    policy: Policy,
    work: workload.Workload,
    kv_tokens: int,
    tokenizer: Tokenizer,
) -> Played:
    flags = [*_common_flags(arguments), *policy.flags, "--max-total-tokens", str(kv_tokens)]
    flags += ["--model-path", str(prepare(MODEL, arguments.dtype))]
    loop = LoopOptions(concurrency=arguments.live, start_spread_s=2.0, seed=arguments.seed)
    warm_up = [workload.shorten(session, tokenizer, workload.Cut(turns=2)) for session in work.spare[:2]]
    stream = None
    if arguments.questions_per_s:
        asked = workload.questions(work.spare, tokenizer, workload.Cut().reply_tokens, arguments.seed)
        stream = Stream(asked, arguments.questions_per_s, arguments.seed)
    with LiveServer(flags, arguments.log_dir / f"sched_live-{name}.log", arguments.threads) as server:
        asyncio.run(play(server.url, MODEL, warm_up, LoopOptions(concurrency=2)))
        played = play(server.url, MODEL, work.sessions, loop, names_sessions=policy.names_sessions, stream=stream)
        return asyncio.run(played)


def _take_over(report: dict[str, Any], path: Path) -> None:
    """The cells of an earlier run with the same settings. Raises SystemExit where the file is of others."""
    if not path.exists():
        return
    before = json.loads(path.read_text())
    differing = [name for name in _SAME if before.get(name) != report[name]]
    if differing:
        raise SystemExit(f"{path} was made with another {' and '.join(differing)}: name another file with --out")
    report["cells"] = before["cells"]


def _require_sound(measured: dict[str, Any], name: str) -> None:
    wrong = {
        key: measured[key]
        for key in ("errors", "forced_mismatches", "question_errors", "question_mismatches")
        if measured.get(key)
    }
    if wrong:
        raise SystemExit(f"{name}: the run is void, not every reply came out as recorded: {wrong}")


def _show(measured: dict[str, Any]) -> None:
    line = (
        f"{measured['oversubscription']:3g}x {measured['policy']:12} session {measured['completion_mean_s']:6.1f} s "
        f"(p95 {measured['completion_p95_s']:.1f})  worst turn {measured['worst_turn_s']:5.1f} s  TTFT "
        f"{measured['ttft_mean_s']:.2f} s  hit {100 * measured['hit_rate']:5.1f}%  recomputed "
        f"{measured['recomputed_tokens']:7,}  {measured['sessions_per_hour']:.0f} an hour  {measured['wall_s']:.0f} s"
    )
    if "questions" in measured:
        line += f"  {measured['questions']} questions, mean {measured['question_mean_s']:.2f} s"
    print(line, flush=True)


def _added(sizes: list[tuple[int, int]]) -> float:
    """Tokens that a turn adds to the context, in the mean."""
    return (sum(sizes[-1]) - sum(sizes[0])) / max(1, len(sizes) - 1)


if __name__ == "__main__":
    main()
