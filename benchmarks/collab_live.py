"""Recorded sessions on live engines, through model `collab` and on one model alone: completion, hand-overs, checks.

    python -m benchmarks.collab_live --trace FILE --out benchmarks/results/collab_live.json

Two engines are started once; the ways to use them are played in turn, in another order each time, on emptied caches.
Replies are forced, so every way does the same work, and who speaks follows from the front's settings alone:

- `large`, `small`: one engine, asked directly.
- `collab`, `collab_gaps`, `collab_cold`: every step counts as no progress, so the models change places as often as the
  budgets allow; reading ahead at any time, only while tools run, and not at all.
- `small_checked`: the small model speaks always, and each of its steps is judged. Against `small` it shows what the
  checks cost, and the front with them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp

from agentinfer.clock import SystemClock
from agentinfer.errors import AgentInferError
from agentinfer.models import prepare
from agentinfer.replay import measure, server_side
from agentinfer.replay.client import ChatClient, get_json
from agentinfer.replay.driver import LoopOptions, Replay
from agentinfer.replay.render import RequestOptions
from agentinfer.replay.session import Session
from agentinfer.replay.traces import read_trace
from benchmarks.compress_live import chosen, paired
from benchmarks.cpu_engine import machine
from benchmarks.live_server import LiveServer

MODELS = {"large": "gemma3-270m", "small": "smollm2-135m"}
_CHECK = ("--agentinfer-collab-check", "verdict")
_CHANGING = (*_CHECK, "--agentinfer-collab-threshold", "1.0")
FRONTS = {
    "collab": _CHANGING,
    "collab_gaps": (*_CHANGING, "--no-agentinfer-collab-warm-in-turns"),
    "collab_cold": (*_CHANGING, "--no-agentinfer-collab-warm"),
    "small_checked": (
        *_CHECK,
        "--agentinfer-collab-threshold",
        "0.0",
        "--agentinfer-collab-warm-up-steps",
        "0",
        "--no-agentinfer-collab-warm",
    ),
}
# What each way is compared with, turn by turn.
TWINS = {"collab": "large", "collab_gaps": "large", "collab_cold": "large", "small_checked": "small"}
_TURN_KEYS = ("session", "turn", "latency_s", "ttft_s", "prompt_tokens", "cached_tokens", "output_tokens")
_SWITCH_KEYS = ("switches", "switch_unseen_tokens", "switch_computed_tokens")


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"
    trace = read_trace(arguments.trace)
    sessions = chosen(trace, arguments.max_tokens, arguments.gap_s, arguments.sessions, arguments.seed)
    report: dict[str, Any] = {
        "format": "agentinfer.benchmark.collab_live",
        "version": 1,
        "command": f"python -m benchmarks.collab_live --trace $AGENTINFER_TRACES/{Path(trace.name).name} "
        f"--sessions {arguments.sessions} --max-tokens {arguments.max_tokens} --gap-s {arguments.gap_s:g} "
        f"--repeats {arguments.repeats}",
        "trace": {"name": Path(trace.name).name, "sha256": trace.sha256},
        "models": MODELS,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "sessions": [session.id for session in sessions],
        "turns": sum(len(session.turns) for session in sessions),
        "gap_s": arguments.gap_s,
        "max_tokens": arguments.max_tokens,
        "fronts": {name: " ".join(flags) for name, flags in FRONTS.items()},
        "conditions": arguments.conditions,
        "machine": machine(),
        "runs": [],
        "rows": [],
    }
    with ExitStack() as running:
        urls = _started(arguments, running)
        for repeat in range(arguments.repeats):
            names = [*urls][repeat % len(urls) :] + [*urls][: repeat % len(urls)]
            for name in names:
                run = asyncio.run(_replay(arguments, urls, name, sessions))
                if run["errors"] or run["forced_mismatches"]:
                    raise SystemExit(f"{name}: not every reply came as recorded: {run['errors_by_kind']}")
                report["runs"].append({"way": name, "repeat": repeat, "load": round(os.getloadavg()[0], 1), **run})
                print(f"{name:14} session {run['completion_mean_s']:.1f} s {run['collab']}", flush=True)
                report["rows"] = rows(report["runs"])
                arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a way, over its repeats; ratios are of completion, against the twin of the same repeat."""
    made = []
    for name in dict.fromkeys(run["way"] for run in runs):
        own = [run for run in runs if run["way"] == name]
        row: dict[str, Any] = {"way": name, "repeats": len(own)}
        for key in ("completion_mean_s", "worst_turn_s", "prompt_tokens_computed"):
            row[key] = statistics.fmean(run[key] for run in own)
        twins = {run["repeat"]: run for run in runs if run["way"] == TWINS.get(name)}
        pairs = [(twins[run["repeat"]], run) for run in own if run["repeat"] in twins]
        if pairs:
            row["completion_ratios"] = [mine["completion_mean_s"] / base["completion_mean_s"] for base, mine in pairs]
            ratios = [b["latency_s"] / a["latency_s"] for base, mine in pairs for a, b in paired(base, mine)]
            low, median, high = statistics.quantiles(ratios, n=4)
            row["latency_ratio"] = {"median": median, "q1": low, "q3": high}
        told = [run["collab"] for run in own if run["collab"]]
        if told:
            row |= {key: sum(each[key] for each in told) for key in _SWITCH_KEYS}
            unseen = row["switch_unseen_tokens"]
            row["switch_prefilled_share"] = 1.0 - row["switch_computed_tokens"] / unseen if unseen else None
        made.append(row)
    return made


def _started(arguments: argparse.Namespace, running: ExitStack) -> dict[str, str]:
    """Where each way is to be asked."""
    flags = ["--agentinfer-forced-replay", "--agentinfer-prefill-route", "--enable-cache-report"]
    flags += ["--dtype", "bfloat16"]
    flags += ["--context-length", "32768", "--max-running-requests", "8", "--chunked-prefill-size", "512"]
    flags += ["--max-total-tokens", str(arguments.kv_tokens)]
    urls = {}
    for role, model in MODELS.items():
        own = [*flags, "--served-model-name", model, "--model-path", str(prepare(model))]
        server = LiveServer(own, arguments.log_dir / f"collab_live-{role}.log", arguments.threads)
        urls[role] = running.enter_context(server).url
    for name, settings in FRONTS.items():
        where = ["--large-base-url", urls["large"], "--small-base-url", urls["small"]]
        front = LiveServer([*where, *settings], arguments.log_dir / f"collab_live-{name}.log", 1)
        urls[name] = running.enter_context(front).url
    return urls


async def _replay(
    arguments: argparse.Namespace, urls: Mapping[str, str], name: str, sessions: Sequence[Session]
) -> dict[str, Any]:
    clock = SystemClock()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)) as http:
        for role in MODELS:
            await _flushed(http, urls[role])
        before = await _collab_counts(http, urls[name])
        model = MODELS.get(name, "collab")
        request = RequestOptions(model, forced=True, send_hints=True, max_tokens=0, temperature=0.0)
        loop = LoopOptions(1, seed=arguments.seed)
        run_id = f"collab-{clock.monotonic_s():.0f}"
        played = await Replay(ChatClient(http, urls[name], clock, 600.0), request, loop, clock, run_id).run(sessions)
        after = await _collab_counts(http, urls[name])
    summary = measure.summarise(played, has_cache_report=True)
    kept = ("completion_mean_s", "worst_turn_s", "prompt_tokens_computed", "errors", "errors_by_kind")
    return {
        **{key: summary[key] for key in (*kept, "forced_mismatches")},
        "collab": {key: after[key] - before[key] for key in after},
        "turns": [{key: turn[key] for key in _TURN_KEYS} for turn in summary["samples"]["turns"]],
    }


async def _flushed(http: aiohttp.ClientSession, url: str) -> None:
    """Empties an engine's cache, which refuses while the last check or reading ahead of the run before goes on."""
    for _ in range(30):
        with contextlib.suppress(AgentInferError):
            await server_side.flush_cache(http, url)
            return
        await asyncio.sleep(1.0)
    await server_side.flush_cache(http, url)


async def _collab_counts(http: aiohttp.ClientSession, url: str) -> dict[str, int]:
    """A front's counts of switches; none from an engine."""
    told = (await get_json(http, url + "/agentinfer/status") or {}).get("collab") or {}
    return {key: told[key] for key in _SWITCH_KEYS if key in told}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trace", required=True, help="recorded sessions, as `agentinfer replay` takes them")
    add("--out", type=Path, default=Path("benchmarks/results/collab_live.json"))
    add("--sessions", type=int, default=1)
    add("--max-tokens", type=int, default=5_000, help="a session ends before its text grows beyond this")
    add("--gap-s", type=float, default=2.0, help="what a tool takes")
    add("--kv-tokens", type=int, default=24_000)
    add("--repeats", type=int, default=2)
    add("--threads", type=int, default=1, help="OMP_NUM_THREADS of each engine")
    add("--seed", type=int, default=0)
    add("--conditions", help="what else the machine was doing, for the record")
    add("--log-dir", type=Path, default=Path("/tmp"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
