"""The simulated cache and its host tier alone: who holds what, tokens counted by hand."""

from __future__ import annotations

import pytest

from agentinfer.radix_ext.paths import ROOT, PathTree
from agentinfer.radix_ext.simulator import EVICTIONS, SharedSegment
from agentinfer.radix_ext.simulator.cache import SimCache
from agentinfer.radix_ext.simulator.host import HostTier

SYSTEM, TASK = SharedSegment("system", 20), SharedSegment("task", 10)


class Bench:
    """A cache of 100 tokens with the least recently used going first."""

    def __init__(self, host: int = 0) -> None:
        self.paths = PathTree()
        self.eviction = EVICTIONS["lru"](self.paths)
        self.cache = SimCache(100, self.paths, HostTier(host))

    def turn(self, session: str, prompt: int, out: int, shared: tuple[SharedSegment, ...] = ()) -> int:
        """One turn from start to end; returns the tokens of its prompt that were cached."""
        cache = self.cache
        node = cache.match(session, shared)
        cached = self.paths.end(node)
        cache.lock(node)
        assert cache.make_room(prompt + out - cached, self.eviction.victims(0.0))
        cache.own_tokens += prompt + out - cached
        own = prompt + out - cached
        cache.check_integrity([node])
        if shared:
            node = cache.insert_shared(session, node, shared)
            own -= max(0, self.paths.end(node) - cached)
            cache.check_integrity([node])
        cache.insert(session, node, prompt + out, own)
        self.eviction.used(session, 0.0)
        cache.check_integrity([])
        return cached


def test_a_turn_finds_what_the_one_before_left() -> None:
    bench = Bench()
    assert [bench.turn("a", 30, 5), bench.turn("a", 40, 5)] == [0, 35]
    assert (bench.cache.tree_tokens, bench.cache.own_tokens, bench.cache.free_tokens) == (45, 0, 55)


def test_shared_segments_are_found_as_deep_as_they_agree() -> None:
    bench = Bench()
    bench.turn("a", 35, 5, (SYSTEM, TASK))
    assert bench.turn("b", 35, 5, (SYSTEM, TASK)) == 30
    assert bench.turn("c", 35, 5, (SYSTEM, SharedSegment("other task", 10))) == 20
    assert bench.turn("d", 15, 5, (TASK,)) == 0  # the same key, but not at the same place
    assert bench.cache.tree_tokens == 30 + 10 + 10 + 20 + 20


def test_the_copy_of_whoever_is_second_is_freed() -> None:
    bench = Bench()
    cache = bench.cache
    nodes = {}
    for session in "ab":
        nodes[session] = cache.match(session, (SYSTEM,))
        cache.own_tokens += 25
    for session in "ab":
        nodes[session] = cache.insert_shared(session, nodes[session], (SYSTEM,))
    assert nodes["a"] == nodes["b"]
    assert (cache.tree_tokens, cache.own_tokens, cache.locked_tokens) == (20, 10, 20)
    cache.check_integrity(list(nodes.values()))


def test_locked_paths_are_not_evicted_and_count_once() -> None:
    bench = Bench()
    bench.turn("a", 35, 5, (SYSTEM,))
    bench.turn("b", 30, 5, (SYSTEM,))
    cache, paths = bench.cache, bench.paths
    a, b = paths.frontier("a"), paths.frontier("b")
    cache.lock(a)
    cache.lock(b)
    assert (cache.locked_tokens, cache.evictable_tokens) == (55, 0)
    cache.unlock(a)
    assert cache.evictable_tokens == 20  # a's own; the shared 20 are still b's
    assert not cache.make_room(66, bench.eviction.victims(0.0))
    assert a not in paths
    assert b in paths
    cache.check_integrity([b])
    cache.unlock(b)
    cache.check_integrity([])


def test_an_edit_inside_a_node_splits_it_and_keeps_its_lock() -> None:
    bench = Bench()
    bench.turn("a", 35, 5, (SYSTEM,))
    cache, paths = bench.cache, bench.paths
    paths.place("b", paths.frontier("a"))
    node = paths.frontier("a")
    cache.lock(node)  # a turn of a runs on it
    cache.cut("b", 30)
    assert paths.cached_tokens("b") == 30
    assert paths.cached_tokens("a") == 40
    cache.check_integrity([node])
    cache.unlock(node)
    cache.cut("a", 0)
    assert paths.frontier("a") == ROOT
    cache.check_integrity([])


def test_a_shared_segment_that_was_evicted_is_found_again_once_another_session_computed_it() -> None:
    bench = Bench()
    bench.turn("a", 25, 5, (SYSTEM,))
    assert bench.cache.make_room(100, bench.eviction.victims(0.0))
    bench.turn("b", 25, 5, (SYSTEM,))
    assert bench.turn("a", 40, 5, (SYSTEM,)) == 20


def test_evicted_tokens_wait_on_the_host_for_live_sessions_only() -> None:
    bench = Bench(host=200)
    bench.turn("a", 30, 10)
    bench.turn("a", 45, 10)
    bench.turn("b", 20, 10)
    bench.cache.forget("b")
    assert bench.cache.make_room(100, bench.eviction.victims(0.0))
    host = bench.cache.host
    assert host.held_tokens == 55
    assert host.loadable_tokens("a", 0, 1000) == 55
    assert host.loadable_tokens("a", 0, 50) == 50
    assert host.loadable_tokens("b", 0, 1000) == 0
    host.release("a")
    assert host.held_tokens == 0
    host.check_integrity()


def test_what_is_on_the_host_must_continue_what_the_device_holds() -> None:
    host = HostTier(100)
    host.offload(60, 80, {"a"})
    host.offload(40, 60, {"a"})
    assert host.loadable_tokens("a", 40, 100) == 40
    assert host.loadable_tokens("a", 50, 100) == 30  # from inside a piece
    assert host.loadable_tokens("a", 30, 100) == 0  # a hole of 10


def test_a_full_host_lets_the_oldest_go() -> None:
    host = HostTier(50)
    host.offload(10, 30, {"a"})
    host.offload(0, 20, {"b"})
    host.offload(0, 20, {"c"})
    assert host.held_tokens == 40
    assert [host.loadable_tokens(name, start, 99) for name, start in (("a", 10), ("b", 0), ("c", 0))] == [0, 20, 20]
    host.offload(0, 51, {"d"})  # larger than all of it: nothing is thrown out for that
    assert host.held_tokens == 40
    host.check_integrity()


@pytest.mark.parametrize(("kept", "left"), [(80, 40), (70, 30), (60, 20), (45, 5), (40, 0)])
def test_an_edit_cuts_what_is_on_the_host(kept: int, left: int) -> None:
    host = HostTier(100)
    host.offload(60, 80, {"a"})
    host.offload(40, 60, {"a"})
    host.cut("a", kept)
    assert host.held_tokens == left
    assert host.loadable_tokens("a", 40, 100) == left
    host.check_integrity()


def test_a_piece_of_two_sessions_stays_whole_until_both_are_done_with_it() -> None:
    host = HostTier(100)
    host.offload(0, 30, {"a", "b"})
    host.cut("a", 10)
    assert [host.loadable_tokens(name, 0, 100) for name in "ab"] == [0, 30]
    assert host.held_tokens == 30
    host.release("b")
    assert host.held_tokens == 0
    host.check_integrity()
