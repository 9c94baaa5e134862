"""AgentCompress and its alternatives on recorded sessions, by counted tokens; no server and no model.

    python -m benchmarks.compress [--traces DIR] [--sessions N] [--json OUT]

Without recorded sessions a made-up one is measured, which shows that it runs and nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from agentinfer.errors import AgentInferError
from agentinfer.replay.session import Session
from agentinfer.replay.traces import read_trace
from benchmarks.automaton import machine
from benchmarks.compress.measure import SETTINGS, SessionWork, counter, measure_extracted
from benchmarks.compress.sample import sample_session
from benchmarks.compress.summary import summary
from benchmarks.compress.variants import VARIANTS

TRACES = ("swe_dev.jsonl.xz", "swe_glm45.jsonl.xz")
LONG_TOKENS = 30_000
SAMPLE_SEED = 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare ways to keep an agent's context short.")
    parser.add_argument("--traces", default=os.environ.get("AGENTINFER_TRACES"), help="default: $AGENTINFER_TRACES")
    parser.add_argument("--sessions", type=int, metavar="N", help="only the first N of each trace")
    parser.add_argument("--processes", type=int, default=1, metavar="P", help="sessions measured at once (default 1)")
    parser.add_argument("--json", metavar="OUT", help="write all figures")
    args = parser.parse_args(arguments)
    started_s = time.perf_counter()
    groups = []
    try:
        for name, sha256, sessions in _read(args.traces, args.sessions):
            measured = _measured(name, sessions, args.processes)
            long = [each for each in measured if each.work["none"].last >= LONG_TOKENS]
            for kind, chosen in (("all", measured), ("long", long)):
                if chosen:
                    groups.append({"trace": name, "sha256": sha256, "kind": kind, **summary(chosen)})
    except AgentInferError as error:
        print(error, file=sys.stderr)
        return 2
    limited = (f" --sessions {args.sessions}" if args.sessions else "") + (
        f" --processes {args.processes}" if args.processes > 1 else ""
    )
    written = f" --json benchmarks/results/{Path(args.json).name}" if args.json else ""
    traces = " --traces $AGENTINFER_TRACES" if args.traces else ""
    result = {
        "format": "agentinfer.benchmark.compress",
        "version": 1,
        "command": f"python -m benchmarks.compress{traces}{limited}{written}",
        "machine": machine(),
        "seconds": round(time.perf_counter() - started_s, 1),
        "token_counts": counter().source,
        "long_tokens": LONG_TOKENS,
        "distiller": "extractive",
        "note_turns": 1,
        "seed": None if args.traces else SAMPLE_SEED,
        "settings": asdict(SETTINGS),
        "variants": VARIANTS,
        "groups": groups,
    }
    text = json.dumps(result, indent=1)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return 0


def _read(folder: str | None, limit: int | None) -> list[tuple[str, str | None, Sequence[Session]]]:
    if not folder:
        return [("sample", None, [sample_session("sample", 40, SAMPLE_SEED)])]
    traces = [(name, read_trace(str(Path(folder) / name))) for name in TRACES]
    return [(name.partition(".")[0], trace.sha256, trace.sessions[:limit]) for name, trace in traces]


def _measured(name: str, sessions: Sequence[Session], processes: int) -> list[SessionWork]:
    found = []
    with multiprocessing.get_context("spawn").Pool(processes) if processes > 1 else nullcontext() as pool:
        each_session = pool.imap(measure_extracted, sessions) if pool is not None else map(measure_extracted, sessions)
        for number, work in enumerate(each_session, 1):
            found.append(work)
            ours, none = work.work["ours"], work.work["none"]
            told = f"{name} {number}/{len(sessions)} {work.id}: {none.last:,} -> {ours.last:,}, {ours.swaps} swaps"
            print(told, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
