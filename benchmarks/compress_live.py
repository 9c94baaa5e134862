"""Long sessions on live servers with and without AgentCompress: what each turn carries, computes and takes.

    python -m benchmarks.compress_live --trace FILE --out benchmarks/results/compress_live.json

The same recorded sessions with forced replies and every message whole, played at the same time on a server a variant,
so that whatever else the machine does slows them alike; there should be a core for each. A tool takes `--gap-s`:
recorded ones take a fraction of a second, in which a GPU computes what takes this engine seconds. Turns are paired by
session and turn. A swap turn is one whose prompt no longer holds what the prompt before still did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from tokenizers import Tokenizer

from agentinfer.clock import SystemClock
from agentinfer.models import prepare
from agentinfer.replay import measure, server_side
from agentinfer.replay.client import ChatClient, get_json
from agentinfer.replay.driver import LoopOptions, Replay
from agentinfer.replay.render import RequestOptions, reply_text
from agentinfer.replay.session import Session
from agentinfer.replay.traces import Trace, read_trace
from benchmarks.cpu_engine import machine
from benchmarks.live_server import LiveServer

MODEL = "smollm2-135m"
OFF = "off"
_ON = ("--enable-compress",)
VARIANTS = {OFF: (), "on": _ON, "on_payloads": (*_ON, "--agentinfer-compress-payloads")}
_TURN_KEYS = ("session", "turn", "latency_s", "ttft_s", "prompt_tokens", "cached_tokens", "output_tokens", "gap_s")


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    # The model was trained for 8K positions; with forced replies only the amount of work matters.
    os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"
    trace = read_trace(arguments.trace)
    sessions = chosen(trace, arguments.max_tokens, arguments.gap_s, arguments.sessions, arguments.seed)
    report: dict[str, Any] = {
        "format": "agentinfer.benchmark.compress_live",
        "version": 1,
        "command": "python -m benchmarks.compress_live --trace $AGENTINFER_TRACES/"
        f"{Path(trace.name).name} --sessions {arguments.sessions} --max-tokens {arguments.max_tokens} "
        f"--gap-s {arguments.gap_s:g} --repeats {arguments.repeats} --variants {' '.join(arguments.variants)}",
        "trace": {"name": Path(trace.name).name, "sha256": trace.sha256},
        "model": MODEL,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "sessions": [session.id for session in sessions],
        "live_sessions": arguments.live,
        "gap_s": arguments.gap_s,
        "flags": {name: " ".join(VARIANTS[name]) for name in arguments.variants},
        "common_flags": " ".join(_common_flags(arguments)),
        "conditions": arguments.conditions,
        "machine": machine(),
        "rows": [],
        "runs": [],
    }
    for repeat in range(arguments.repeats):
        load = round(os.getloadavg()[0], 1)
        for name, run in asyncio.run(_play(arguments, sessions)).items():
            if run["errors"] or run["forced_mismatches"]:
                raise SystemExit(f"{name}: not every reply came as recorded: {run['errors']}, {run['errors_by_kind']}")
            report["runs"].append({"variant": name, "repeat": repeat, "load_average": load, **run})
            print(
                f"{name:12} session {run['completion_mean_s']:.1f} s  prompt tokens {run['prompt_tokens']:,}",
                flush=True,
            )
        report["rows"] = rows(report["runs"])
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in report["rows"]:
        print(json.dumps({key: value for key, value in row.items() if not isinstance(value, list)}))


def chosen(trace: Trace, max_tokens: int, gap_s: float, count: int, seed: int) -> list[Session]:
    """Sessions of different tasks that grow beyond `max_tokens` of text, without the turns in which they do.

    Raises SystemExit where there are too few.
    """
    tokenizer = Tokenizer.from_file(str(prepare(MODEL) / "tokenizer.json"))
    sessions = list(trace.sessions)
    random.Random(seed).shuffle(sessions)
    found: dict[str, Session] = {}
    for session in sessions:
        sizes = [len(tokenizer.encode(reply_text(message)).ids) for message in session.messages]
        if session.task in found or sum(sizes) < max_tokens:
            continue
        fitting = [turn for turn in session.turns if sum(sizes[: len(turn.prompt) + 1]) <= max_tokens]
        turns = tuple(replace(turn, gap_s=gap_s) for turn in fitting)
        found[session.task] = replace(session, turns=turns)
        if len(found) == count:
            return list(found.values())
    raise SystemExit(f"{trace.name}: {len(found)} tasks have sessions above {max_tokens} tokens, not {count}")


def rows(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a variant, over its repeats, and its turns against those of the server without compression.

    `slower_turns_share`: of the turns, how many took longer than their twin by more than a tenth and 50 ms. For the
    server without compression the twin is that of another repeat, which shows the noise.
    """
    plain = [run for run in runs if run["variant"] == OFF]
    made = []
    for name in dict.fromkeys(run["variant"] for run in runs):
        own = [run for run in runs if run["variant"] == name]
        row: dict[str, Any] = {"variant": name, "repeats": len(own)}
        for key in (
            "completion_mean_s",
            "prompt_tokens",
            "prompt_tokens_computed",
            "last_prompt_tokens",
            "worst_turn_s",
        ):
            row[key] = statistics.fmean(run[key] for run in own)
        row |= {"warmed_tokens": statistics.fmean(run["compression"].get("warmed_tokens", 0) for run in own)}
        at_once = [(base, run) for base in plain for run in own if run is not base]
        if name != OFF:
            at_once = [(base, run) for base, run in at_once if base["repeat"] == run["repeat"]]
        pairs = [pair for base, run in at_once for pair in paired(base, run)]
        if pairs:
            row["slower_turns_share"] = statistics.fmean(_is_slower(base, mine) for base, mine in pairs)
            ratios = [mine["latency_s"] / base["latency_s"] for base, mine in pairs]
            low, median, high = statistics.quantiles(ratios, n=4)
            row["latency_ratio"] = {"median": median, "q1": low, "q3": high}
        if name != OFF and plain:
            swaps = [turn for run in own for turn in swap_turns(plain[0], run)]
            row["swap_turns"] = len(swaps)
            row["swap_cached_shares"] = [round(turn["cached_tokens"] / turn["prompt_tokens"], 4) for turn in swaps]
            first = statistics.fmean(run["last_prompt_tokens"] for run in plain)
            row["saved_at_the_end"] = 1.0 - row["last_prompt_tokens"] / first
            row["saved_over_all"] = 1.0 - row["prompt_tokens"] / statistics.fmean(run["prompt_tokens"] for run in plain)
        made.append(row)
    return made


def paired(base: dict[str, Any], other: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The same turns of two runs."""
    turns = {(turn["session"], turn["turn"]): turn for turn in base["turns"]}
    return [(turns[key], turn) for turn in other["turns"] if (key := (turn["session"], turn["turn"])) in turns]


def swap_turns(base: dict[str, Any], run: dict[str, Any]) -> list[dict[str, Any]]:
    """Turns of `run` at which the prompt fell further behind its twin's than it was at the turn before."""
    found = []
    behind: dict[str, int] = {}
    for mine, other in paired(run, base):
        saved = other["prompt_tokens"] - mine["prompt_tokens"]
        if saved > behind.get(mine["session"], 0):
            found.append(mine)
        behind[mine["session"]] = saved
    return found


def _is_slower(base: dict[str, Any], mine: dict[str, Any]) -> bool:
    return bool(mine["latency_s"] > 1.1 * base["latency_s"] + 0.05)


async def _play(arguments: argparse.Namespace, sessions: Sequence[Session]) -> dict[str, dict[str, Any]]:
    model = str(prepare(MODEL, arguments.dtype))
    with ExitStack() as running:
        servers = {}
        for name in arguments.variants:
            flags = [*_common_flags(arguments), *VARIANTS[name], "--model-path", model]
            log = arguments.log_dir / f"compress_live-{name}.log"
            servers[name] = running.enter_context(LiveServer(flags, log, arguments.threads))
        played = [_replay(arguments, server.url, sessions) for server in servers.values()]
        return dict(zip(servers, await asyncio.gather(*played), strict=True))


async def _replay(arguments: argparse.Namespace, url: str, sessions: Sequence[Session]) -> dict[str, Any]:
    clock = SystemClock()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)) as http:
        await server_side.flush_cache(http, url)
        request = RequestOptions(MODEL, forced=True, send_hints=True, max_tokens=0, temperature=0.0)
        loop = LoopOptions(arguments.live, seed=arguments.seed)
        played = await Replay(ChatClient(http, url, clock, 600.0), request, loop, clock, "compress").run(sessions)
        status = await get_json(http, url + "/agentinfer/status") or {}
    summary = measure.summarise(played, has_cache_report=True)
    turns = [{key: turn[key] for key in _TURN_KEYS} for turn in summary["samples"]["turns"]]
    last = {turn["session"]: turn["prompt_tokens"] for turn in turns}
    kept = ("completion_mean_s", "worst_turn_s", "prompt_tokens", "prompt_tokens_computed", "errors", "errors_by_kind")
    return {
        **{key: summary[key] for key in (*kept, "forced_mismatches")},
        "last_prompt_tokens": sum(filter(None, last.values())),
        "compression": status.get("compression") or {},
        "turns": turns,
    }


def _common_flags(arguments: argparse.Namespace) -> list[str]:
    flags = ["--agentinfer-forced-replay", "--enable-cache-report", "--served-model-name", MODEL]
    flags += ["--dtype", arguments.dtype, "--context-length", "65536", "--max-running-requests", "8"]
    return [*flags, "--chunked-prefill-size", "1024", "--max-total-tokens", str(arguments.kv_tokens)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trace", required=True, help="recorded sessions, as `agentinfer replay` takes them")
    add("--out", type=Path, default=Path("benchmarks/results/compress_live.json"))
    add("--variants", nargs="+", choices=list(VARIANTS), default=[OFF, "on_payloads"])
    add("--sessions", type=int, default=2)
    add("--live", type=int, default=1, help="sessions live at once")
    add("--max-tokens", type=int, default=12_000, help="a session ends before its text grows beyond this")
    add("--gap-s", type=float, default=2.0, help="what a tool takes")
    add("--kv-tokens", type=int, default=160_000)
    add("--repeats", type=int, default=2)
    add("--dtype", default="bfloat16")
    add("--threads", type=int, default=1, help="OMP_NUM_THREADS of each server")
    add("--seed", type=int, default=0)
    add("--conditions", help="what else the machine was doing, for the record")
    add("--log-dir", type=Path, default=Path("/tmp"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
