"""What the suffix automaton costs on recorded agent text: tokens a second built, bytes a token, nanoseconds a match.

    python -m benchmarks.automaton [--traces DIR] [--tokenizer FILE] [--repeat N] [--json OUT]

Per trace file: an automaton per session, extended message by message, as a server would; decoding, three tokens a call;
one automaton of all sessions but every fourth, and the others followed through it. Times are of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agentinfer import models
from agentinfer.replay.render import reply_text
from agentinfer.replay.traces import read_trace
from agentinfer.spec_sam import BACKEND, Automaton, Cursor, extend_batch, match_batch, reference

Tokens = npt.NDArray[np.int32]

TRACES = ("swe_dev.jsonl.xz", "swe_glm45.jsonl.xz", "airline.jsonl.xz")
TOKENS_A_STEP = 3
TWIN_TOKENS = 20_000


@dataclass(frozen=True, slots=True)
class Corpus:
    """One trace, tokenised: a list of messages a session."""

    name: str
    sha256: str
    sessions: list[list[Tokens]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.automaton", description=__doc__.splitlines()[0])
    parser.add_argument("--traces", default=os.environ.get("AGENTINFER_TRACES"), help="default: $AGENTINFER_TRACES")
    parser.add_argument("--tokenizer", help="a tokenizer.json; default: the embedded model's")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each measurement (default 5)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/automaton.json"))
    args = parser.parse_args(argv)
    if not args.traces:
        parser.error("no recorded sessions: pass --traces DIR or set AGENTINFER_TRACES")
    tokenizer = Path(args.tokenizer or Path(models.prepare("smollm2-135m")) / "tokenizer.json")

    rows = []
    for name in TRACES:
        corpus = tokenize(Path(args.traces) / name, tokenizer)
        rows.append(measure(corpus, args.repeat))
        print(table_row(rows[-1]), flush=True)
    result = {
        "benchmark": "automaton",
        "command": shlex.join(["python", "-m", "benchmarks.automaton", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine(),
        "backend": BACKEND,
        "tokenizer": "smollm2-135m" if args.tokenizer is None else tokenizer.parent.name,
        "max_match": Automaton().max_match,
        "repeat": args.repeat,
        "rows": rows,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def tokenize(path: Path, tokenizer: Path) -> Corpus:
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    trace = read_trace(str(path))
    sessions = []
    for session in trace.sessions:
        texts = [f"<|im_start|>{m['role']}\n{reply_text(m)}<|im_end|>\n" for m in session.messages]
        sessions.append([np.array(e.ids, dtype=np.int32) for e in encoder.encode_batch_fast(texts)])
    return Corpus(path.name.split(".")[0], trace.sha256, sessions)


def measure(corpus: Corpus, repeat: int) -> dict[str, Any]:
    whole = [np.concatenate(session) for session in corpus.sessions]
    learnt = [tokens for i, tokens in enumerate(whole) if i % 4]
    others = [tokens for i, tokens in enumerate(whole) if i % 4 == 0]
    num_tokens = sum(map(len, whole))

    automata = build_sessions(corpus.sessions)
    store = build_store(learnt)
    num_learnt = store.num_tokens
    num_others = sum(map(len, others))
    return {
        "trace": corpus.name,
        "trace_sha256": corpus.sha256,
        "sessions": len(whole),
        "tokens": num_tokens,
        "by_session": shape(automata),
        "one_store": shape([store]),
        "session_build_ns_per_token": timed(lambda: build_sessions(corpus.sessions), num_tokens, repeat),
        "store_build_ns_per_token": timed(lambda: build_store(learnt), num_learnt, repeat),
        "decode_step_ns_per_call": summary([decode_ns_per_call(whole) for _ in range(repeat)]),
        "match_ns_per_token": timed(lambda: follow(store, others), num_others, repeat),
        "mean_match_tokens": mean_match(store, others[: max(1, len(others) // 4)]),
        "twin_build_ns_per_token": timed(lambda: build_twin(whole[0]), min(len(whole[0]), TWIN_TOKENS), 1),
    }


def shape(automata: list[Automaton]) -> dict[str, float]:
    """Counted, so equal on every machine."""
    num_tokens = sum(a.num_tokens for a in automata)
    return {
        "bytes_per_token": sum(a.memory_bytes() for a in automata) / num_tokens,
        "states_per_token": sum(a.num_states for a in automata) / num_tokens,
        "edges_per_token": sum(a.num_edges for a in automata) / num_tokens,
        "count_updates_per_token": sum(a.num_count_updates for a in automata) / num_tokens,
    }


def build_sessions(sessions: list[list[Tokens]]) -> list[Automaton]:
    automata = []
    for messages in sessions:
        automaton = Automaton()
        for message in messages:
            automaton.extend(message)
        automata.append(automaton)
    return automata


def build_store(documents: list[Tokens]) -> Automaton:
    store = Automaton()
    for document in documents:
        store.start_document()
        store.extend(document)
    return store


def decode_ns_per_call(documents: list[Tokens]) -> float:
    """The last quarter of each document as decoding: three tokens a call, each followed by the match to draft from."""
    offsets = np.array([0, TOKENS_A_STEP], dtype=np.int64)
    num_calls = 0
    taken_ns = 0
    for document in documents:
        prompt = len(document) * 3 // 4
        steps = np.split(document[prompt:], range(TOKENS_A_STEP, len(document) - prompt, TOKENS_A_STEP))[:-1]
        automata = [Automaton()]
        automata[0].extend(document[:prompt])
        started_ns = time.perf_counter_ns()
        for step in steps:
            extend_batch(automata, step, offsets)
            automata[0].suffix_match()
        taken_ns += time.perf_counter_ns() - started_ns
        num_calls += len(steps)
    return taken_ns / num_calls


def follow(store: Automaton, streams: list[Tokens]) -> None:
    cursors = [Cursor(store) for _ in streams]
    offsets = np.cumsum([0, *map(len, streams)], dtype=np.int64)
    states, lengths = np.empty(len(streams), np.int32), np.empty(len(streams), np.int32)
    match_batch(cursors, np.concatenate(streams), offsets, states, lengths)


def mean_match(store: Automaton, streams: list[Tokens]) -> float:
    lengths = []
    for stream in streams:
        cursor = Cursor(store)
        lengths += [cursor.advance(stream[i : i + 1]).length for i in range(len(stream))]
    return statistics.fmean(lengths)


def build_twin(tokens: Tokens) -> None:
    reference.Automaton().extend(tokens[:TWIN_TOKENS])


def timed(work: Callable[[], object], num_units: int, repeat: int) -> dict[str, Any]:
    samples_ns = []
    for _ in range(repeat):
        started_ns = time.perf_counter_ns()
        work()
        samples_ns.append((time.perf_counter_ns() - started_ns) / num_units)
    return summary(samples_ns)


def summary(samples: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(samples), "samples": samples}


def machine() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models_named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "platform": platform.platform(),
        "cpu": next(models_named, platform.machine()),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "agentinfer": metadata.version("agentinfer"),
    }


def table_row(row: dict[str, Any]) -> str:
    def median_and_spread(key: str) -> str:
        samples = row[key]["samples"]
        return f"{key} {row[key]['median']:.0f} ({min(samples):.0f}-{max(samples):.0f})"

    timings = ", ".join(median_and_spread(key) for key in row if key.endswith(("_per_token", "_per_call")))
    session_bytes, store_bytes = (row[key]["bytes_per_token"] for key in ("by_session", "one_store"))
    return (
        f"{row['trace']}: {row['sessions']} sessions, {row['tokens']} tokens, "
        f"{session_bytes:.1f} bytes a token by session, {store_bytes:.1f} in one store; "
        f"{timings}; mean match {row['mean_match_tokens']:.1f} tokens"
    )


if __name__ == "__main__":
    raise SystemExit(main())
