"""What the store of contexts is worth and costs: does retrieval find what the agent says next, and how fast.

    python -m benchmarks.store [--traces DIR] [--tokenizer FILE] [--queries N] [--k N] [--seed N] [--json OUT]

Worth, per trace file, leave-one-task-out: all turns of all sessions are stored; for a sample of turns, contexts of
other tasks are chosen, and counted is which share of the turn's own new 4-grams (those of the response that its prompt
does not have, so that the session's own text cannot draft them) occurs in them. Choosers get the same number of tokens:
that of the K contexts that `retrieve` chose. Cost: one store of all traces, repeated under new names up to 10,000
contexts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agentinfer import models
from agentinfer.spec_sam.store import ContextStore, StoreOptions
from agentinfer.spec_sam.store.payloads import Tokens
from benchmarks.automaton import TRACES, machine

N_GRAM = 4
MIN_NEW_GRAMS = 5
COST_CONTEXTS = 10_000
QUERY_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Turn:
    session: str
    task: str
    turn: int
    prompt: Tokens
    response: Tokens


@dataclass(frozen=True, slots=True)
class Stored:
    """A turn in the store: its tokens are what `retrieve` gives of it. `grams` ascend."""

    context_id: int
    turn: Turn
    num_tokens: int
    grams: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__.splitlines()[0])
    parser.add_argument("--traces", default=os.environ.get("AGENTINFER_TRACES"), help="default: $AGENTINFER_TRACES")
    parser.add_argument("--tokenizer", help="a tokenizer.json; default: the embedded model's")
    parser.add_argument("--queries", type=int, default=300, help="turns sampled a trace (default 300)")
    parser.add_argument("--k", type=int, default=16, help="contexts retrieved a query (default 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/store.json"))
    args = parser.parse_args(argv)
    if not args.traces:
        parser.error("no recorded sessions: pass --traces DIR or set AGENTINFER_TRACES")
    tokenizer = Path(args.tokenizer or Path(models.prepare("smollm2-135m")) / "tokenizer.json")

    rows, everything = [], []
    for name in TRACES:
        turns, sha256 = read_turns(Path(args.traces) / name, tokenizer)
        everything += turns
        rows.append({"trace": name.split(".")[0], "trace_sha256": sha256, **worth(turns, args)})
        print(json.dumps(rows[-1], indent=1), flush=True)
    costs = cost(everything, args)
    print(json.dumps(costs, indent=1))
    result = {
        "benchmark": "store",
        "command": shlex.join(["python", "-m", "benchmarks.store", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine(),
        "tokenizer": "smollm2-135m" if args.tokenizer is None else tokenizer.parent.name,
        "seed": args.seed,
        "k": args.k,
        "n_gram": N_GRAM,
        "worth": rows,
        "cost": costs,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def read_turns(path: Path, tokenizer: Path) -> tuple[list[Turn], str]:
    """Every turn of every session, messages tokenised one by one."""
    from tokenizers import Tokenizer

    from agentinfer.replay.render import reply_text
    from agentinfer.replay.traces import read_trace

    encoder = Tokenizer.from_file(str(tokenizer))
    trace = read_trace(str(path))
    turns = []
    for session in trace.sessions:
        texts = [f"<|im_start|>{m['role']}\n{reply_text(m)}<|im_end|>\n" for m in session.messages]
        tokens = [np.array(e.ids, dtype=np.int32) for e in encoder.encode_batch_fast(texts)]
        replies = [i for i, m in enumerate(session.messages) if m["role"] == "assistant" and i]
        for turn, place in enumerate(replies):
            prompt = np.concatenate(tokens[:place])
            turns.append(Turn(session.id, session.task, turn, prompt, tokens[place]))
    return turns, trace.sha256


def worth(turns: list[Turn], args: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        options = StoreOptions(max_bytes=1 << 40, max_index_bytes=1 << 40, fsync="never")
        with ContextStore(folder, "benchmark", options=options) as store:
            held = list(add_all(store, turns))
            size_bytes = store.size_bytes
            samples: dict[str, list[float]] = {}
            budgets: list[int] = []
            for turn, wanted in queries(turns, args.queries, rng):
                budget = score(store, held, turn, wanted, args.k, rng, samples)
                budgets.append(budget)
    whole = sum(len(t.prompt) + len(t.response) for t in turns)
    return {
        "contexts": len(held),
        "bytes": size_bytes,
        "bytes_if_whole_prompts_were_kept": 4 * whole,
        "queries": len(budgets),
        "mean_tokens_chosen": statistics.fmean(budgets),
        "share_of_new_grams_found": {name: statistics.fmean(values) for name, values in samples.items()},
        "share_by_query": samples,
    }


def add_all(store: ContextStore, turns: list[Turn]) -> Iterator[Stored]:
    for turn in turns:
        context_id = store.add("ns", turn.session, turn.turn, turn.prompt, turn.response)
        if context_id is not None:
            tokens = store.tokens(context_id)
            yield Stored(context_id, turn, len(tokens), np.unique(grams(tokens)))


def queries(turns: list[Turn], num_queries: int, rng: random.Random) -> Iterator[tuple[Turn, np.ndarray]]:
    """Turns that say something new, with their new n-grams, sorted."""
    found = 0
    for turn in rng.sample(turns, len(turns)):
        known = np.sort(grams(turn.prompt))
        said = np.unique(grams(turn.response))
        new = said[~contains(known, said)]
        if len(new) >= MIN_NEW_GRAMS:
            yield turn, new
            found += 1
            if found == num_queries:
                return


def score(
    store: ContextStore,
    held: list[Stored],
    turn: Turn,
    wanted: np.ndarray,
    k: int,
    rng: random.Random,
    samples: dict[str, list[float]],
) -> int:
    """Appends the share of `wanted` that each chooser's contexts have; returns the tokens that each got."""
    others = [s for s in held if s.turn.task != turn.task]
    by_id = {s.context_id: s for s in others}
    hits = store.retrieve("ns", turn.prompt, len(held))
    chosen = [by_id[hit.context_id] for hit in hits if hit.context_id in by_id][:k]
    budget = sum(s.num_tokens for s in chosen)
    latest = sorted(others, key=lambda s: -s.context_id)
    choices = {
        "retrieved": chosen,
        "random": within(rng.sample(others, len(others)), budget),
        "most_recent": within(latest, budget),
        "everything": others,
    }
    for name, contexts in choices.items():
        found = np.zeros(len(wanted), bool)
        for stored in contexts:
            found |= contains(stored.grams, wanted)
        samples.setdefault(name, []).append(float(found.mean()))
    return budget


def within(contexts: list[Stored], budget: int) -> list[Stored]:
    """From the front, up to so many tokens; one that does not fit is passed over."""
    taken, total = [], 0
    for stored in contexts:
        if total + stored.num_tokens <= budget * 1.05:
            taken.append(stored)
            total += stored.num_tokens
            if total >= budget * 0.95:
                break
    return taken


def grams(tokens: Tokens) -> np.ndarray:
    """A hash of each n-gram."""
    if len(tokens) < N_GRAM:
        return np.empty(0, np.uint64)
    mixed = np.zeros(len(tokens) - N_GRAM + 1, np.uint64)
    for place in range(N_GRAM):
        mixed ^= tokens[place : place + len(mixed)].astype(np.uint64) + np.uint64(1)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def contains(ordered: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(ordered):
        return np.zeros(len(wanted), bool)
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return ordered[place] == wanted


def cost(turns: list[Turn], args: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(args.seed)
    asked = [turn.prompt[-QUERY_TOKENS:] for turn in rng.sample(turns, min(200, len(turns)))]
    with tempfile.TemporaryDirectory() as folder:
        options = StoreOptions(max_bytes=1 << 40, max_index_bytes=1 << 40)
        with ContextStore(folder, "benchmark", options=options) as store:
            store.add("ns", "first", 0, [1, 2, 3], [4])
            store.retrieve("ns", [1, 2, 3], 1)  # the index is there from the start, so each add pays for its part
            add_us, add_cpu_us = [], []
            while len(add_us) < COST_CONTEXTS:
                for turn in turns[: COST_CONTEXTS - len(add_us)]:
                    session = f"{turn.session}/{len(add_us) // len(turns)}"
                    started_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
                    store.add("ns", session, turn.turn, turn.prompt, turn.response)
                    add_us.append((time.perf_counter_ns() - started_ns) / 1e3)
                    add_cpu_us.append((time.thread_time_ns() - cpu_ns) / 1e3)
            stats = store.stats()
        started_ns = time.perf_counter_ns()
        store = ContextStore(folder, "benchmark", options=options)
        open_ms = (time.perf_counter_ns() - started_ns) / 1e6
        started_ns = time.perf_counter_ns()
        store.retrieve("ns", asked[0], args.k)
        build_ms = (time.perf_counter_ns() - started_ns) / 1e6
        retrieve_ms, retrieve_cpu_ms = [], []
        for query in asked:
            started_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
            store.retrieve("ns", query, args.k)
            retrieve_ms.append((time.perf_counter_ns() - started_ns) / 1e6)
            retrieve_cpu_ms.append((time.thread_time_ns() - cpu_ns) / 1e6)
        store.close()
    return {
        "contexts": stats.namespaces[0].contexts,
        "tokens": stats.namespaces[0].tokens,
        "bytes": stats.size_bytes,
        "index_bytes": stats.index_bytes,
        "add_us": spread(add_us),
        "add_cpu_us": spread(add_cpu_us),
        "retrieve_ms": spread(retrieve_ms),
        "retrieve_cpu_ms": spread(retrieve_cpu_ms),
        "open_and_check_ms": open_ms,
        "build_index_ms": build_ms,
    }


def spread(samples: list[float]) -> dict[str, float]:
    p50, p99 = (float(np.percentile(samples, q)) for q in (50, 99))
    return {"p50": p50, "p99": p99, "max": max(samples), "samples": len(samples)}


if __name__ == "__main__":
    raise SystemExit(main())
