"""Host time of a scheduling step with a long queue and a big tree: AgentSched against stock SGLang.

    python -m benchmarks.sched_host --out benchmarks/results/sched_host.json

A step takes one turn out of the queue (match its prompt), ends one (insert its context), lets one arrive, orders the
queue, and evicts what the new tokens need, on SGLang's real prefix cache without a model. Ours goes through the same
hooks as in the scheduler. Every variant sees the same sessions in the same order.
"""

from __future__ import annotations

import argparse
import array
import json
import random
import statistics
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.cpu_engine import machine
from benchmarks.tables import table

TURN_TOKENS = 8
# By policy, the tree core and whether few of the waiting turns may go; stock's policies know no such case.
CASES = {"agent": (("agentinfer", False), ("agentinfer", True))}
VARIANTS = ("agent", "fcfs", "lpm", "hrrn", "shortest-prefill-first")


class Stopwatch:
    """Processor seconds of this thread by part of a step: what neighbours on the machine take does not count."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)
        self._step: dict[str, float] = {}

    def time(self, part: str, function: Any, *args: Any) -> Any:
        began = time.thread_time()
        result = function(*args)
        self._step[part] = self._step.get(part, 0.0) + time.thread_time() - began
        return result

    def end_step(self) -> None:
        decided = sum(self._step.get(part, 0.0) for part in ("order", "evict"))
        for part, seconds in {**self._step, "decide": decided, "all": sum(self._step.values())}.items():
            self.samples[part].append(seconds)
        self._step = {}


class Bench:
    """One cache, one policy, `num_sessions` sessions of `num_turns` cached turns each, all with a turn waiting."""

    def __init__(self, variant: str, core: str, num_sessions: int, num_turns: int, is_tight: bool, seed: int) -> None:
        from agentinfer.radix_ext import AgentPolicy, SchedulingSettings
        from tests.scheduling_builders import CacheHarness

        self.rng = random.Random(seed)
        self.variant = variant
        # Loose: every session is a member and every turn a candidate. Tight: one turn in twenty may go.
        self.size = num_sessions * (num_turns + 2) * TURN_TOKENS
        capacity = self.size // 20 if is_tight else 2 * self.size
        policy = AgentPolicy(SchedulingSettings(), capacity) if variant == "agent" else None
        self.harness = CacheHarness(self.size, policy, None if variant == "agent" else _stock(core), num_requests=8)
        # The allocator's own lists are the same for all and would drown the rest.
        self.harness.allocator.alloc = _fresh_slots(self.harness.allocator)
        self.harness.allocator.free = lambda *_: None
        self.contexts: dict[str, array.array[int]] = {}
        self.queue: list[Any] = []
        self.watch = Stopwatch()
        self._next = 0
        self._order = self._agent_order() if variant == "agent" else self._stock_order(variant)
        names = [f"s{number}" for number in range(num_sessions)]
        for name in names:
            self.contexts[name] = array.array("q", self._tokens())
        for _ in range(num_turns):
            for name in names:
                self._finish(self._begin(self._arrive(name)))
        for name in names:
            self.queue.append(self._arrive(name))
        self.watch = Stopwatch()

    def step(self) -> None:
        """One turn goes, ends and comes back at the end of the queue."""
        self.watch.time("order", self._order)
        request = self.queue[0]
        del self.queue[0]
        self.watch.time("match", self._begin, request)
        name = self.watch.time("insert", self._finish, request)
        self.watch.time("evict", self._evict)
        self.queue.append(self.watch.time("arrive", self._arrive, name))
        self.watch.end_step()

    def num_nodes(self) -> int:
        return len(self.harness.cache.paths) if self.variant == "agent" else -1

    def _tokens(self) -> list[int]:
        return [self.rng.randrange(50_000) for _ in range(TURN_TOKENS)]

    def _arrive(self, name: str) -> Any:
        from tests.scheduling_builders import Request

        self._next += 1
        self.contexts[name].extend(self._tokens())
        request = Request(f"r{self._next}", self.contexts[name], name)
        request.time_stats = SimpleNamespace(wait_queue_entry_time=float(self._next))
        request.arrival_processed_tokens = self._next
        request._compute_max_prefix_len = lambda length: length - 1
        if self.variant == "agent":
            self.harness.book.advance(self._next * 0.001)
            self.harness.book.arrived(request)
        return request

    def _begin(self, request: Any) -> Any:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        request.matched = self.harness.cache.match_prefix(
            MatchPrefixParams(key=RadixKey(token_ids=request.origin_input_ids))
        )
        if self.variant == "agent":
            self.harness.book.started([request])
        return request

    def _finish(self, request: Any) -> str:
        import torch
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        matched = request.matched.device_indices
        values = torch.cat([matched, self.harness.allocator.alloc(len(request.origin_input_ids) - len(matched))])
        cache, book = self.harness.cache, self.harness.book
        result = cache.insert(InsertParams(key=RadixKey(token_ids=request.origin_input_ids), value=values))
        if self.variant == "agent":
            cache._place(request, result.last_device_node)
            request.finish()
            book.released(request)
        return str(request.session_id)

    def _evict(self) -> None:
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        self.harness.cache.evict(EvictParams(num_tokens=TURN_TOKENS))

    def _agent_order(self) -> Any:
        from agentinfer.runtime.scheduling.hooks import SchedulerHooks

        hooks = SchedulerHooks()
        hooks.bind(self.harness.book)
        scheduler = SimpleNamespace(
            token_to_kv_pool_allocator=self.harness.allocator,
            tree_cache=self.harness.cache,
            chunked_req=None,
            running_batch=None,
            last_batch=None,
            grammar_manager=SimpleNamespace(grammar_queue=[]),
            enable_priority_scheduling=False,
            enable_priority_preemption=False,
            is_hybrid_swa=False,
        )
        running = SimpleNamespace(reqs=[None], batch_is_full=False)

        def order() -> None:
            scheduler.waiting_queue = self.queue
            planned: list[Any] = []

            def fill(scheduler: Any, running: Any) -> tuple[None, Any]:
                planned.extend(scheduler.waiting_queue)
                return None, running

            hooks.fill_prefill_batch(fill, scheduler, running)
            # The one that goes is at the head, as if the engine had taken it.
            place = next(index for index, request in enumerate(self.queue) if request is planned[0])
            self.queue.insert(0, self.queue.pop(place))

        return order

    def _stock_order(self, name: str) -> Any:
        from sglang.srt.managers.schedule_policy import SchedulePolicy

        policy = SchedulePolicy(name, self.harness.cache, False, False, False)
        return lambda: policy.calc_priority(self.queue, None, processed_tokens=self._next)


def _fresh_slots(allocator: Any) -> Any:
    import torch

    return lambda count: torch.arange(count, dtype=torch.int64)


def _stock(core: str) -> Any:
    def make(params: Any) -> Any:
        from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

        params.tree_core_backend = core
        return UnifiedRadixCache(params)

    return make


def summary(samples: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Milliseconds of each part."""
    found = {}
    for part, seconds in samples.items():
        ordered = sorted(1e3 * each for each in seconds)
        found[part] = {
            "mean_ms": round(statistics.fmean(ordered), 4),
            "p50_ms": round(ordered[len(ordered) // 2], 4),
            "p99_ms": round(ordered[int(0.99 * len(ordered))], 4),
        }
    return found


def section(run: dict[str, Any]) -> str:
    """The section of the measurements page."""
    parts = {"decide": "order, admit, evict", "match": "match a prompt", "insert": "insert a context"}
    rows = [
        [
            f"`{row['policy']}`" + (f", {row['case']}" if row["policy"] in CASES else ""),
            row["core"],
            *(f"{row['parts'][part]['p50_ms']:.3f} / {row['parts'][part]['p99_ms']:.3f}" for part in parts),
        ]
        for row in run["rows"]
    ]
    text = (
        "Milliseconds of the scheduler's thread in a step, median / 99th percentile: 1,000 requests wait, the cache "
        "has 10,000 nodes. Loose: every waiting turn may go; tight: one in twenty. SGLang's lpm and hrrn fall back to "
        "first come first served above 128 waiting requests. SGLang's own tree core is in Rust, ours extends its "
        "Python one."
    )
    figures = table(["policy", "tree core", *parts.values()], rows)
    return f"## Host time of scheduling\n\n{text}\n\n{figures}\n`{run['command']}`\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sched_host.json"))
    parser.add_argument("--waiting", type=int, default=1000, help="requests in the queue")
    parser.add_argument("--turns", type=int, default=10, help="cached turns a session")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rows = []
    for variant in VARIANTS:
        for core, is_tight in (
            (("agentinfer", False), ("agentinfer", True)) if variant == "agent" else (("rust", False),)
        ):
            bench = Bench(variant, core, arguments.waiting, arguments.turns, is_tight, arguments.seed)
            steps = arguments.steps if variant in ("agent", "fcfs", "lpm", "hrrn") else min(arguments.steps, 50)
            for _ in range(steps):
                bench.step()
            row = {"policy": variant, "core": core, "case": "tight" if is_tight else "loose", "steps": steps}
            rows.append({**row, "nodes": bench.num_nodes(), "parts": summary(bench.watch.samples)})
            print(json.dumps(rows[-1]))
    command = f"python -m benchmarks.sched_host --waiting {arguments.waiting} --turns {arguments.turns}"
    result = {
        "machine": machine(),
        "command": f"{command} --steps {arguments.steps} --seed {arguments.seed}",
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
