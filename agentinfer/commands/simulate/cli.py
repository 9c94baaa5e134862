"""`agentinfer simulate` and `agentinfer calibrate`: flags, tables, files and exit status."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentinfer.commands.simulate import measuring
from agentinfer.commands.simulate.fitting import fit
from agentinfer.commands.simulate.policies import parse_policies
from agentinfer.commands.simulate.run import SimulationOptions, simulate
from agentinfer.commands.simulate.sessions import read_workload
from agentinfer.errors import AgentInferError
from agentinfer.radix_ext.simulator import EVICTIONS, ORDERS, costs
from agentinfer.replay import table

_POLICIES = f"""policies, several separated by commas:
  agent               AgentSched, as the live engine runs it
  ORDER[+EVICTION]    orders: {", ".join(ORDERS)} (spf for short)
                      evictions: {", ".join(EVICTIONS)} (default lru); ttl alone is fcfs+ttl

One policy gives one JSON object, several give a list."""


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds both commands. Each sets ``args.run``, which takes `args` and returns an exit status."""
    parser = subparsers.add_parser(
        "simulate",
        help="recorded sessions on a simulated engine",
        description="Run recorded agent sessions in a closed loop on a simulated engine, under one policy or several.",
        epilog=_POLICIES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--trace",
        required=True,
        metavar="FILE",
        help="recorded sessions, with text or with token counts and times only",
    )
    add("--policy", required=True, metavar="P[,P...]", help="see below")
    add("--live-sessions", required=True, type=_whole(1), metavar="C", help="sessions live at once, over all replicas")
    add("--kv-tokens", required=True, type=_whole(2), metavar="K", help="KV cache of a replica, in tokens")
    add("--replicas", type=_whole(1), default=1, metavar="R", help="engines; a session stays on one (default 1)")
    add("--sessions", type=_whole(1), metavar="N", help="repeat the trace's sessions up to N (default: each once)")
    add("--costs", default="reference", metavar="NAME|FILE", help="an engine: reference, or what calibrate has written")
    add("--max-gap-s", type=_number(0), metavar="S", help="cut longer gaps between turns to S seconds")
    add("--default-gap-s", type=_number(0), default=0.0, metavar="S", help="gaps where none is recorded (default 0)")
    add("--host-kv-tokens", type=_whole(0), default=0, metavar="H", help="offload tier of a replica (default: none)")
    add("--max-wait-s", type=_number(0), metavar="W", help="bound on waiting of the agent policy (default: its own)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting of the agent policy")
    add("--seed", type=int, metavar="N", help="shuffle the sessions (default: the trace's order)")
    add("--json", metavar="OUT", help="write the record")
    parser.set_defaults(run=_simulate)
    _add_calibrate(subparsers)


def _add_calibrate(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "calibrate",
        help="measure what a running server's work takes",
        description="Measure prefill and decoding of a running, idle server, and fit the costs that simulate takes.",
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:30000", help="the server (default %(default)s)")
    add("--quick", action="store_true", help="few points, once each: seconds instead of minutes, and less exact")
    add(
        "--seed",
        type=int,
        metavar="N",
        help="of the prompts, which a server may have cached from a run with the same N",
    )
    add("--json", required=True, metavar="OUT", help="write costs, errors of the fit and samples")
    parser.set_defaults(run=_calibrate)


def _simulate(args: argparse.Namespace) -> int:
    _check_writable(args.json)
    policies = parse_policies(args.policy)
    options = SimulationOptions(
        live_sessions=args.live_sessions,
        kv_tokens=args.kv_tokens,
        replicas=args.replicas,
        sessions=args.sessions,
        costs=costs.load(args.costs),
        host_kv_tokens=args.host_kv_tokens,
        max_wait_s=args.max_wait_s,
        settings=dict(map(_assignment, args.set)),
        seed=args.seed,
    )
    workload = read_workload(args.trace, default_gap_s=args.default_gap_s, max_gap_s=args.max_gap_s)
    command = shlex.join(["agentinfer", *sys.argv[1:]])
    records = [{**simulate(workload, policy, options), "command": command} for policy in policies]
    if args.json:
        _write(args.json, records[0] if len(records) == 1 else records)
    print(_table(records))
    too_long = records[0]["too_long"]
    if too_long:
        print(f"{too_long} sessions left out: their contexts exceed {args.kv_tokens:,} tokens")
    print(f"token counts: {workload.token_counts}")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    _check_writable(args.json)
    grid = measuring.QUICK if args.quick else measuring.FULL
    url = args.url.rstrip("/").removesuffix("/v1")
    told = lambda line: print(line, file=sys.stderr)  # noqa: E731
    rng = random.SystemRandom() if args.seed is None else random.Random(args.seed)
    server, prefill, decode = asyncio.run(measuring.measure(url, grid, rng, told))
    found = fit(server.base, prefill, decode)
    record = {
        "costs": asdict(found.costs),
        "error": {"prefill": asdict(found.prefill), "decode": asdict(found.decode)},
        "assumed": ["reserved_output_tokens", "running_reserve", "load_tokens_per_s"],
        "server": {
            "model": server.model,
            "version": server.version,
            "device": server.device,
            "kv_tokens": server.kv_tokens,
        },
        "prefill": [asdict(sample) for sample in prefill],
        "decode": [asdict(sample) for sample in decode],
        "command": shlex.join(["agentinfer", *sys.argv[1:]]),
    }
    _write(args.json, record)
    rows = [
        (name, table.figure(value) if not isinstance(value, bool) else str(value))
        for name, value in asdict(found.costs).items()
    ]
    print(table.render(("", "measured"), rows))
    for name, error in (("prefill", found.prefill), ("decode", found.decode)):
        print(f"{name}: the fit is off by {error.mean:.1%} on average, {error.largest:.1%} at most")
    return 0


def _table(records: list[dict[str, Any]]) -> str:
    heads = ("policy", "sessions/h", "completion mean s", "p95 s", "worst turn s", "recomputed", "hit rate")
    rows = [
        (
            record["policy"],
            table.figure(record["sessions_per_hour"]),
            table.figure(record["completion_mean_s"]),
            table.figure(record["completion_p95_s"]),
            table.figure(record["worst_turn_s"]),
            f"{100 * record['recomputed_share']:.1f} %",
            f"{100 * record['hit_rate']:.1f} %",
        )
        for record in records
    ]
    return table.render(heads, rows)


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise AgentInferError(f"--set {text}: expected NAME=VALUE")
    return name.replace("-", "_"), value


def _check_writable(name: str | None) -> None:
    """Found out before the run, not after it."""
    if name is not None and not Path(name).absolute().parent.is_dir():
        raise AgentInferError(f"{name}: its folder does not exist, so the result could not be written there")


def _write(name: str, value: Any) -> None:
    unfinished = Path(f"{name}.tmp")
    try:
        unfinished.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(unfinished, name)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise AgentInferError(f"{name}: cannot be written: {error.strerror or error}") from error


def _whole(lowest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= 10**12:
            raise argparse.ArgumentTypeError(f"expected a whole number from {lowest}, got {text!r}")
        return int(text)

    return parse


def _number(lowest: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = lowest - 1
        if not lowest <= value <= 1e12:
            raise argparse.ArgumentTypeError(f"expected a number from {lowest:g}, got {text!r}")
        return value

    return parse
