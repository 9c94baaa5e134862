"""Tokens per verify step, drafted tokens, host time and memory of drafters on recorded sessions, side by side.

    python -m benchmarks.draft_quality --trace FILE [--drafter NAME] [--leave-out task] --json OUT

Offline: the recorded reply is the greedy truth. Sessions are served in the order of the file, turn after turn, by one
drafter that keeps what it keeps; a verify step emits the drafted tokens on the longest matching path and one more. The
figures at the top of a row are over the sessions whose task is new in the file (`new_tasks`), with `repeated_tasks` and
`all_sessions` beside them. --leave-out task: the first session of each task, with all sessions of the other tasks in
the drafter's memory; filling it is not timed.

The budget is the number of tokens verified a step, the last verified one included, as SGLang's
--speculative-num-draft-tokens: 16 means at most 15 drafted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from agentinfer.errors import AgentInferError
from benchmarks.automaton import machine
from benchmarks.drafting.catalogue import NAMES, PACKAGES
from benchmarks.drafting.drafter import BenchmarkError
from benchmarks.drafting.sessions import Source, load, save

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    arguments = [_portable(each) for each in (sys.argv[1:] if argv is None else argv)]
    try:
        rows = run(args, " ".join(["python -m benchmarks.draft_quality", *arguments]))
    except AgentInferError as error:
        print(error, file=sys.stderr)
        return 2
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def run(args: argparse.Namespace, command: str) -> list[dict[str, Any]]:
    """A row a drafter. A missing baseline is named on stderr and left out, unless it alone was asked for."""
    settings = _settings(args)
    with tempfile.TemporaryDirectory() as folder:
        tokens = args.tokens or Path(folder) / "tokens.npz"
        if not tokens.exists():
            from benchmarks.drafting.tokenise import tokenise  # seconds to import, not needed for tokens that are kept

            save(tokenise(args.trace, args.sessions), tokens)
        source = load(tokens).source
        rows = []
        for name in args.drafter or NAMES:
            job = {
                "tokens": str(tokens),
                "drafter": name,
                "budget": args.budget,
                "settings": settings,
                "leave_out": args.leave_out,
                "sessions": args.sessions,
            }
            try:
                runs = [_in_own_process(job) for _ in range(args.repeat)]
            except BenchmarkError as error:
                if args.drafter:
                    raise
                print(error, file=sys.stderr)
                continue
            rows.append(_row(job, runs, source, command))
            if args.conditions:
                rows[-1]["conditions"] = args.conditions
            print(_line(rows[-1]), flush=True)
    return rows


def _row(job: dict[str, Any], runs: list[dict[str, Any]], source: Source, command: str) -> dict[str, Any]:
    """The run of median host time gives the times; counts are the same in all of them."""
    runs = sorted(runs, key=lambda each: float(each["new_tasks"]["all_in_us_per_token"]))
    run = runs[len(runs) // 2]
    headline = run["new_tasks"]
    name = job["drafter"]
    return {
        "drafter": name,
        **{key: headline[key] for key in ("tokens_per_step", "drafted_per_step", "all_in_us_per_token")},
        "peak_rss_mb": max(each["peak_rss_mb"] for each in runs),
        "all_in_us_per_token_samples": [each["new_tasks"]["all_in_us_per_token"] for each in runs],
        **{key: value for key, value in run.items() if key != "peak_rss_mb"},
        **{key: job[key] for key in ("budget", "settings", "leave_out")},
        "trace": {"name": source.trace, "sha256": source.sha256, "sessions_limit": job["sessions"]},
        "tokenizer": source.tokenizer,
        "command": command,
        "machine": {**machine(), **{each: _version(each) for each in PACKAGES.get(name, ())}},
    }


def _in_own_process(job: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.drafting.process", json.dumps(job)],
        env={**os.environ, **_ONE_THREAD},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip() or f"its process ended with status {done.returncode}"
        raise BenchmarkError(f"{job['drafter']}: {reason}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if measured["new_tasks"] is None:
        raise BenchmarkError(f"{job['drafter']}: no reply of more than one token in this trace, so no verify step")
    return measured


def _portable(argument: str) -> str:
    """Quoted for a shell; a file of the folder AGENTINFER_TRACES goes by that variable, not by this machine's path."""
    folder = os.environ.get("AGENTINFER_TRACES")
    if folder and Path(argument).parent == Path(folder):
        return f"$AGENTINFER_TRACES/{shlex.quote(Path(argument).name)}"
    return shlex.quote(argument)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    if not args.set:
        return {}
    if len(args.drafter or NAMES) != 1:
        raise BenchmarkError("--set: settings belong to one drafter; name it with --drafter")
    pairs = [setting.partition("=") for setting in args.set]
    try:
        return {name: json.loads(value) for name, _, value in pairs}
    except json.JSONDecodeError as error:
        raise BenchmarkError(f"--set: expected NAME=VALUE with a JSON value, got {shlex.join(args.set)}") from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _line(row: dict[str, Any]) -> str:
    repeated = row["repeated_tasks"]
    again = f" (repeated tasks {repeated['tokens_per_step']:.2f})" if repeated else ""
    cpu_us = row["new_tasks"]["cpu_us_per_token"]
    return (
        f"{row['drafter']}: {row['tokens_per_step']:.3f} tokens a step{again}, {row['drafted_per_step']:.1f} drafted, "
        f"{row['all_in_us_per_token']:.1f} us a token ({cpu_us:.1f} of work), "
        f"{row['peak_rss_mb']:.0f} MB at most"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draft_quality", description=__doc__.splitlines()[0])
    parser.add_argument("--trace", required=True, help="recorded sessions, in any format that agentinfer replay reads")
    parser.add_argument("--drafter", action="append", choices=NAMES, help="repeatable; default: all")
    parser.add_argument("--leave-out", choices=("task",), help="measure each task with only the others in memory")
    parser.add_argument("--budget", type=_width, default=16, help="tokens verified a step (default 16)")
    parser.add_argument("--json", type=Path, required=True, help="a list with a row a drafter")
    parser.add_argument("--sessions", type=_at_least_one, help="only the first N sessions")
    parser.add_argument("--repeat", type=_at_least_one, default=1, help="runs a drafter (default 1)")
    parser.add_argument(
        "--set", action="append", metavar="NAME=JSON", help="a setting of the one --drafter; repeatable"
    )
    parser.add_argument(
        "--tokens", type=Path, help="keep the tokenised trace in this file, and use it when it is there"
    )
    parser.add_argument("--conditions", help="kept in the rows, e.g. what else ran on the machine")
    return parser


def _width(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value}: at least 2, since the last verified token is one of them")
    return value


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
