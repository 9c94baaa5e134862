"""Forced replay on live servers: no speculation, SGLang's NGRAM and AGENT_SAM, measured in turn with the same sessions.

    python -m benchmarks.spec_live --trace FILE --out benchmarks/results/spec_live.json

All servers stay up, idle ones asleep; each block of sessions goes to one after the other, in an order that alternates,
with an empty prefix cache. No session is played twice on a server, so nobody has seen a reply before it is asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentinfer.models import prepare
from agentinfer.replay.driver import LoopOptions
from agentinfer.replay.run import RunOptions, replay
from agentinfer.replay.session import Session
from agentinfer.replay.traces import Trace, read_trace
from agentinfer.replay.truncate import Limits
from benchmarks.cpu_engine import machine
from benchmarks.live_server import LiveServer

MODEL = "smollm2-135m"

NGRAM = ("--speculative-algorithm", "NGRAM", "--speculative-ngram-capacity", "1000000")
# NGRAM pays for its whole width in every step, so what suits one request does not suit many: several are tried.
VARIANTS: dict[str, tuple[str, ...]] = {
    "off": (),
    "ngram_4": (*NGRAM, "--speculative-num-draft-tokens", "4"),
    "ngram_12": (*NGRAM, "--speculative-num-draft-tokens", "12"),
    "agent_sam": ("--speculative-algorithm", "AGENT_SAM"),
}


def start(name: str, arguments: argparse.Namespace) -> LiveServer:
    """The server of a variant, not yet waited for."""
    flags = [*VARIANTS[name], "--agentinfer-forced-replay", "--model-path", str(prepare(MODEL, arguments.dtype))]
    flags += ["--served-model-name", MODEL, "--dtype", arguments.dtype]
    flags += ["--max-running-requests", "16", "--max-total-tokens", str(arguments.kv_tokens)]
    return LiveServer(flags, arguments.log_dir / f"spec_live-{name}.log", arguments.threads)


@contextlib.contextmanager
def running(arguments: argparse.Namespace) -> Iterator[dict[str, LiveServer]]:
    servers: dict[str, LiveServer] = {}
    try:
        for name in arguments.variants:
            servers[name] = start(name, arguments)
            servers[name].wait()
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def play(
    server: LiveServer, trace: Trace, sessions: Sequence[Session], concurrency: int, limits: Limits
) -> dict[str, Any]:
    """One block on one server. Raises SystemExit where a reply did not come out as recorded."""
    options = RunOptions(
        url=server.url,
        model=MODEL,
        forced=True,
        flush_cache=True,
        limits=limits,
        loop=LoopOptions(concurrency=concurrency, gap_scale=0.0),
    )
    result = asyncio.run(replay(dataclasses.replace(trace, sessions=list(sessions)), options)).result
    if result["errors"] or result["forced_mismatches"]:
        raise SystemExit(
            f"{server.log}: of {result['turns']} turns {result['errors']} failed {result['errors_by_kind']} and "
            f"{result['forced_mismatches']} were not as recorded"
        )
    names = ("completion_mean_s", "ttft_p50_s", "tpot_mean_s", "output_tokens", "output_tokens_per_s", "turns")
    kept = ("session", "turn", "ttft_s", "tpot_s", "output_tokens", "prompt_tokens", "cached_tokens")
    turns = [{name: turn[name] for name in kept} for turn in result["samples"]["turns"]]
    return {**{name: result[name] for name in names}, "samples": turns}


def blocks(
    trace: Trace, concurrencies: Sequence[int], repeats: int, sessions_each: int, rng: random.Random
) -> tuple[list[Session], list[tuple[int, int, list[Session]]]]:
    """(warm-up sessions, (repeat, concurrency, sessions) of each block); no session is in two of them."""
    sessions = list(trace.sessions)
    rng.shuffle(sessions)
    wanted = 2 + repeats * sum(max(concurrency, sessions_each) for concurrency in concurrencies)
    if wanted > len(sessions):
        raise SystemExit(f"{trace.name} holds {len(sessions)} sessions, {wanted} are needed: ask for fewer repeats")
    pool = iter(sessions)
    warm_up = [next(pool), next(pool)]
    planned = [
        (repeat, concurrency, [next(pool) for _ in range(max(concurrency, sessions_each))])
        for repeat in range(repeats)
        for concurrency in concurrencies
    ]
    return warm_up, planned


def summarise(results: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a concurrency: each variant's figures, and its time per output token against the others', turn by turn."""
    rows = []
    for concurrency in dict.fromkeys(result["concurrency"] for result in results):
        of = {name: [r for r in results if r["concurrency"] == concurrency and r["variant"] == name] for name in names}
        row: dict[str, Any] = {"concurrency": concurrency, "variants": {}}
        for name in names:
            figures = ("tpot_mean_s", "ttft_p50_s", "completion_mean_s", "output_tokens_per_s")
            row["variants"][name] = {figure: statistics.mean(r[figure] for r in of[name]) for figure in figures}
        tpots = {name: _by_turn(of[name], "tpot_s") for name in names}
        ttfts = {name: _by_turn(of[name], "ttft_s") for name in names}
        for base in names:
            if base == "agent_sam" or "agent_sam" not in names:
                continue
            shared = sorted(set(tpots[base]) & set(tpots["agent_sam"]))
            row[f"tpot_speedup_over_{base}"] = _spread([tpots[base][key] / tpots["agent_sam"][key] for key in shared])
            row[f"ttft_ratio_to_{base}"] = _spread([ttfts["agent_sam"][key] / ttfts[base][key] for key in shared])
        rows.append(row)
    return rows


def _by_turn(results: Sequence[dict[str, Any]], figure: str) -> dict[tuple[str, int], float]:
    return {
        (turn["session"], turn["turn"]): turn[figure]
        for result in results
        for turn in result["samples"]
        if turn[figure] is not None
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "q1": low, "q3": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trace", required=True, help="recorded sessions, as `agentinfer replay` takes them")
    add("--out", type=Path, default=Path("benchmarks/results/spec_live.json"))
    add("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    add("--concurrency", nargs="+", type=int, default=[1, 4, 8, 16])
    add("--repeats", type=int, default=2)
    add("--sessions", type=int, default=2, help="sessions a block, at least as many as run at once")
    add("--max-turns", type=int, default=4)
    add("--max-context", type=int, default=3000, help="tokens of prompt and reply")
    add("--max-message-tokens", type=int, default=400, help="of user and tool messages")
    add("--kv-tokens", type=int, default=57344, help="room in each server's cache")
    add("--dtype", default="bfloat16")
    add("--threads", type=int, default=os.cpu_count() or 1, help="OMP_NUM_THREADS of each server")
    add("--seed", type=int, default=0)
    add("--conditions", help="what else the machine was doing, for the record")
    add("--log-dir", type=Path, default=Path("/tmp"))
    arguments = parser.parse_args()

    # A terminated run must not leave servers behind; its blocks so far are kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    trace = read_trace(arguments.trace)
    limits = Limits(arguments.max_context, arguments.max_message_tokens, arguments.max_turns)
    warm_up, planned = blocks(
        trace, arguments.concurrency, arguments.repeats, arguments.sessions, random.Random(arguments.seed)
    )
    report: dict[str, Any] = {
        "format": "agentinfer.benchmark.spec_live",
        "version": 1,
        "command": " ".join(["python -m benchmarks.spec_live", *sys.argv[1:]]),
        "trace": {"name": Path(trace.name).name, "sha256": trace.sha256},
        "model": MODEL,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "flags": {name: " ".join(VARIANTS[name]) for name in arguments.variants},
        "conditions": arguments.conditions,
        "load_average": os.getloadavg(),
        "machine": machine(),
        "rows": [],
        "results": [],
    }
    with running(arguments) as servers:
        for server in servers.values():
            play(server, trace, warm_up, 2, limits)
        for number, (repeat, concurrency, sessions) in enumerate(planned):
            order = list(servers) if number % 2 else list(servers)[::-1]
            for name in order:
                block = play(servers[name], trace, sessions, concurrency, limits)
                report["results"].append({"variant": name, "concurrency": concurrency, "repeat": repeat, **block})
                print(
                    f"{concurrency:3} at once  {name:10} {1e3 * block['tpot_mean_s']:7.1f} ms a token  "
                    f"TTFT {block['ttft_p50_s']:.2f} s  session {block['completion_mean_s']:.1f} s",
                    flush=True,
                )
            report["rows"] = summarise(report["results"], list(servers))
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in report["rows"]:
        gains = {name: value for name, value in row.items() if name.startswith("tpot_speedup")}
        for name, gain in gains.items():
            print(f"{row['concurrency']:3} at once  {name} {gain['median']:.2f} ({gain['q1']:.2f} to {gain['q3']:.2f})")


if __name__ == "__main__":
    main()
