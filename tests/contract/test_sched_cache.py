"""AgentSched's prefix cache: SGLang's real one, on the CPU, without a server: mirror, eviction, turns' ends."""

from __future__ import annotations

import array
import os
import random
import subprocess
import sys
from typing import Any

import pytest

from agentinfer.config import AgentInferConfig
from tests.scheduling_builders import CacheHarness, RecordingPolicy, Request

pytestmark = pytest.mark.sglang


def tokens(rng: random.Random, count: int) -> list[int]:
    # Few different tokens, so that contexts part inside nodes.
    return [rng.randrange(3) for _ in range(count)]


def run_turn(
    harness: CacheHarness, rid: str, session: str | None, prompt: list[int], reply: int = 3, **hints: Any
) -> Request:
    request = Request(rid, prompt, session, **hints)
    harness.book.arrived(request)
    assert harness.start(request)
    for _ in range(reply):
        assert harness.decode(request, 7)
    harness.end(request)
    harness.check()
    return request


@pytest.mark.parametrize("seed", range(12))
def test_mirror_follows_any_traffic(seed: int) -> None:
    """Random sessions that share, part, grow, abort, retract and end in a cache that is always too small."""
    rng = random.Random(seed)
    harness = CacheHarness(size=rng.choice((120, 200)), num_requests=6)
    contexts: dict[str, list[int]] = {}
    queue: list[Request] = []
    for step in range(400):
        action = rng.random()
        if action < 0.35:
            name = f"s{rng.randrange(8)}"
            known = contexts.setdefault(name, tokens(rng, 6))
            keep = rng.randrange(len(known) // 2, len(known) + 1)
            prompt = (known[:keep] + tokens(rng, rng.randrange(1, 9)))[:60]
            request = Request(f"r{step}", prompt, name if rng.random() < 0.8 else None)
            harness.book.arrived(request)
            queue.append(request)
        elif action < 0.6 and queue:
            request = queue.pop(rng.randrange(len(queue)))
            if rng.random() < 0.1:
                harness.book.dropped(request.rid)
            elif not harness.start(request):
                queue.append(request)
        elif action < 0.85 and harness.running:
            for request in list(harness.running):
                if not harness.decode(request, rng.randrange(3)):
                    harness.retract(request)
                    queue.append(request)
        elif action < 0.93 and harness.running:
            request = rng.choice(harness.running)
            session = harness.book.session_of(request)
            harness.end(request, is_abort=rng.random() < 0.2)
            if session in contexts:
                contexts[session] = list(request.get_fill_ids())
        elif action < 0.96:
            harness.book.session_ended(f"s{rng.randrange(8)}")
        elif action < 0.98:
            harness.evict(rng.randrange(1, 40))
        elif not harness.running:
            harness.cache.reset()
            harness.allocator.clear()
            harness.pool.clear()
        harness.check()
    assert harness.cache.num_unordered_evictions == 0
    for request in list(harness.running):
        harness.end(request)
    harness.book.sweep(())
    for name in contexts:
        harness.book.session_ended(name)
    assert len(harness.book) == 0
    assert not harness.policy.paths._frontier
    assert harness.evict(10_000) + harness.allocator.available_size() >= harness.size
    harness.check()
    assert len(harness.policy.paths) == 0


def test_session_ends_where_its_context_does() -> None:
    harness = CacheHarness(size=200)
    run_turn(harness, "a1", "a", list(range(100, 120)), reply=4)
    assert harness.policy.paths.cached_tokens("a") == 24
    run_turn(harness, "b1", "b", list(range(100, 110)) + list(range(10)), reply=2)
    assert harness.policy.paths.cached_tokens("a") == 24
    assert harness.policy.paths.cached_tokens("b") == 22


def test_context_of_an_ended_session_goes_first() -> None:
    harness = CacheHarness(size=60)
    run_turn(harness, "a1", "a", list(range(100, 120)), reply=0)
    run_turn(harness, "b1", "b", list(range(200, 220)), reply=0)
    harness.book.session_ended("b")
    harness.evict(20)
    assert harness.policy.paths.cached_tokens("a") == 20
    assert harness.policy.paths.cached_tokens("b") == 0
    harness.check()


def test_request_without_a_session_leaves_nothing_behind() -> None:
    harness = CacheHarness(size=60)
    run_turn(harness, "x", None, list(range(20)))
    assert harness.policy.events == [
        ("arrived", "x", "request x"),
        ("started", "x"),
        ("finished", "x", 23, True),
        ("ended", "request x"),
    ]
    assert not harness.policy.paths._frontier


def test_session_that_ended_while_its_turn_ran_is_nobodys_afterwards() -> None:
    harness = CacheHarness(size=60)
    request = Request("a1", list(range(20)), "a")
    harness.book.arrived(request)
    assert harness.start(request)
    harness.book.session_ended("a")
    assert harness.policy.paths.cached_tokens("a") == 20
    harness.end(request, is_abort=True)
    assert harness.policy.events[-2:] == [("dropped", "a1"), ("ended", "a")]
    assert not harness.policy.paths._frontier


def test_request_that_is_aborted_while_it_waits_is_dropped() -> None:
    """As `abort_request`, a full queue, a timeout and a refused priority do it: they all drop the attempt's state."""
    from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle, CacheRequestOutcome

    harness = CacheHarness(size=60)
    harness.book.arrived(Request("a1", list(range(20)), "a"))
    harness.cache.finish(CacheRequestHandle("a1", 0), CacheRequestOutcome.SUCCESS)
    assert harness.policy.events == [("arrived", "a1", "a")]
    harness.cache.finish(CacheRequestHandle("a1", 0), CacheRequestOutcome.ABORT)
    assert harness.policy.events[1:] == [("dropped", "a1")]
    assert len(harness.book) == 0


def test_retracted_request_waits_again_with_its_context_still_its_sessions() -> None:
    harness = CacheHarness(size=60)
    request = Request("a1", list(range(20)), "a")
    harness.book.arrived(request)
    assert harness.start(request)
    harness.retract(request)
    assert harness.policy.events == [("arrived", "a1", "a"), ("started", "a1"), ("requeued", "a1")]
    harness.check()
    assert harness.start(request)
    assert request.num_cached == 19
    harness.end(request)
    harness.check()


def test_running_requests_are_never_evicted_and_their_memory_is_found_by_no_order() -> None:
    harness = CacheHarness(size=60)
    request = Request("a1", list(range(50)), "a")
    harness.book.arrived(request)
    assert harness.start(request)
    assert harness.evict(60) == 0
    harness.check()


def test_leaves_that_the_policy_never_offers_are_evicted_all_the_same() -> None:
    policy = RecordingPolicy()
    policy.victims = lambda now_s: iter(())  # type: ignore[method-assign, assignment]
    harness = CacheHarness(size=60, policy=policy)
    run_turn(harness, "a1", "a", list(range(20)))
    assert harness.evict(60) == 23
    assert harness.cache.num_unordered_evictions == 2  # the reply, then the prompt
    harness.check()


def test_node_that_leaves_for_the_host_leaves_the_mirror_and_returns_to_it() -> None:
    import torch
    from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer

    harness = CacheHarness(size=60)
    core = harness.cache.tree_core
    core.set_hicache_enabled()
    request = run_turn(harness, "a1", "a", list(range(20)), reply=4)
    nodes = [node for node in core._collect_all_nodes() if node is not core.root_node]
    for node in nodes:
        core.commit_backup(node.id, torch.arange(len(node.key)), {})
    assert harness.evict(60) == 24
    core.check_mirror()
    assert harness.policy.paths.cached_tokens("a") == 0
    assert all(node.backuped and node.evicted for node in nodes)

    transfer = PoolTransfer(
        name=PoolName.KV,
        host_indices=torch.cat([node.component_data[0].host_value for node in nodes]),
        nodes_to_load=[node.id for node in nodes],
    )
    core.commit_load_back(nodes[-1].id, harness.allocator.alloc(24), transfer, {})
    core.check_mirror()
    assert len(harness.policy.paths) == len(nodes)
    # Computed again instead: the same nodes come back by an insert.
    assert harness.evict(60) == 24
    run_turn(harness, "a2", "a", list(request.get_fill_ids()), reply=0)
    core.check_mirror()
    assert harness.policy.paths.cached_tokens("a") == 24


def test_mirror_that_differs_is_noticed() -> None:
    harness = CacheHarness(size=60)
    run_turn(harness, "a1", "a", list(range(20)), reply=0)
    (node,) = list(harness.policy.paths._nodes)[1:]
    harness.policy.paths.remove(node)
    with pytest.raises(AssertionError, match="on the device but not in the mirror"):
        harness.cache.sanity_check()


def test_answers_of_the_cache_are_upstreams_while_there_is_room() -> None:
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    def python_cache(params: Any) -> Any:
        params.tree_core_backend = "python"
        return UnifiedRadixCache(params)

    ours, stock = CacheHarness(size=4000), CacheHarness(size=4000, cache_class=python_cache)
    rng = random.Random(3)
    contexts: dict[str, list[int]] = {f"s{n}": tokens(rng, 8) for n in range(6)}
    for turn in range(60):
        name = rng.choice(sorted(contexts))
        prompt = contexts[name][: rng.randrange(1, len(contexts[name]) + 1)] + tokens(rng, 5)
        seen = []
        for harness in (ours, stock):
            request = Request(f"t{turn}", prompt, name)
            harness.book.arrived(request)
            assert harness.start(request)
            for token in (1, 2):
                harness.decode(request, token)
            harness.end(request)
            seen.append(request.num_cached)
        assert seen[0] == seen[1]
        contexts[name] = [*prompt, 1, 2]
    ours.check()


def test_two_processes_that_are_told_the_same_decide_the_same() -> None:
    """Plans, evictions and retractions of AgentSched's own policy, in two processes whose hashes and addresses differ,
    as the ranks of one engine do."""
    decided = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.scheduling_story", "1", "5"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("DECIDED")]
        assert len(lines) == 2, done.stderr[-3000:]
        decided.append([line.split() for line in lines])
    assert decided[0] == decided[1]
    for _, _, plans, evictions, retractions, unordered in decided[0]:
        assert (int(plans), int(unordered)) == (600, 0)
        assert int(evictions) > 200
        assert int(retractions) > 0


ABSENT = """
import sys
from agentinfer.runtime.seams import ledger
ledger().process = "scheduler"
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.mem_cache.registry import registered_radix_cache_backends
from sglang.srt.mem_cache.unified_cache.tree_core_registry import registered_tree_core_backends
hooked = [each.seam.target for each in ledger().hooked if each.seam.feature == "scheduling"]
ours = ("agentinfer.runtime.scheduling.reg", "agentinfer.radix_ext")
loaded = [name for name in sys.modules if name.startswith(ours)]
print("ABSENT", ledger().plugin_ran, hooked, loaded, registered_radix_cache_backends(), registered_tree_core_backends())
"""


def test_switched_off_it_registers_and_loads_nothing() -> None:
    environment = {**os.environ, "AGENTINFER_CONFIG": AgentInferConfig().to_json()}
    done = subprocess.run(
        [sys.executable, "-c", ABSENT], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ABSENT")]
    assert lines == ["ABSENT True [] [] [] ['python', 'rust']"], done.stderr[-2000:]


def test_mirror_follows_a_cache_with_sliding_windows() -> None:
    """Windows live in a smaller pool of their own, in SGLang's order; their evictions take leaves of the tree along."""
    import torch
    from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
    from sglang.srt.mem_cache.unified_cache.components import ComponentType

    from agentinfer.runtime.scheduling.book import TurnBook
    from agentinfer.runtime.scheduling.radix_cache import AgentRadixCache

    plain = CacheHarness(size=10)  # sets up what SGLang's modules expect of a process
    one_head = {"head_num": 1, "head_dim": 2, "swa_attention_layer_ids": [0], "full_attention_layer_ids": [1]}
    memory = SWAKVPool(200, 80, 1, torch.float16, **one_head, device="cpu", enable_memory_saver=False)
    allocator = SWATokenToKVPoolAllocator(200, 80, 1, torch.float16, "cpu", memory, False)
    params = CacheInitParams(
        disable=False,
        req_to_token_pool=plain.pool,
        token_to_kv_pool_allocator=allocator,
        page_size=1,
        tree_components=(ComponentType.FULL, ComponentType.SWA),
        sliding_window_size=8,
    )
    cache = AgentRadixCache(params, TurnBook(RecordingPolicy()))
    rng = random.Random(1)
    num_taken_along = 0
    for _ in range(300):
        key = RadixKey(token_ids=array.array("q", tokens(rng, rng.randrange(5, 40))))
        match = cache.match_prefix(MatchPrefixParams(key=key))
        receipt = cache.inc_lock_ref(match.last_device_node).to_dec_params()
        num_new = len(key) - len(match.device_indices)
        missing = (num_new - allocator.full_available_size(), num_new - allocator.swa_available_size())
        cache.evict(EvictParams(num_tokens=max(0, missing[0]), swa_num_tokens=max(0, missing[1])))
        slots = allocator.alloc(num_new) if num_new else match.device_indices[:0]
        cache.dec_lock_ref(match.last_device_node, receipt)
        if slots is not None:
            value = torch.cat([match.device_indices, slots])
            cache.insert(InsertParams(key=key, value=value, prev_prefix_len=len(match.device_indices)))
        cache.sanity_check()
        if rng.random() < 0.2:
            before = len(cache.paths)
            cache.evict(EvictParams(num_tokens=0, swa_num_tokens=rng.randrange(30)))
            num_taken_along += before - len(cache.paths)
            cache.sanity_check()
    assert num_taken_along > 0
    assert cache.num_unordered_evictions == 0
