"""Stock orders and evictions as the simulator has them, on small trees and queues."""

from __future__ import annotations

import pytest

from agentinfer.radix_ext.facade import KvState, TurnRequest
from agentinfer.radix_ext.paths import ROOT, PathTree
from agentinfer.radix_ext.simulator import EVICTIONS, ORDERS, StockPolicy
from agentinfer.radix_ext.simulator.evictions import LeastRecentlyUsed, TailOptimised, TimeToLive
from agentinfer.radix_ext.simulator.host import HostTier

KV = KvState(free_tokens=1000, evictable_tokens=0, num_running=0)


def waiting(order: str) -> StockPolicy:
    """Prompts of 100, 60 and 80 tokens, of which 70, 0 and 75 are cached."""
    policy = StockPolicy(order, LeastRecentlyUsed)
    for node, (session, prompt, cached) in enumerate((("a", 100, 70), ("b", 60, 0), ("c", 80, 75)), 1):
        if cached:
            policy.paths.add(node, ROOT, cached)
            policy.paths.place(session, node)
        policy.turn_arrived(TurnRequest(session, session, 0.0, prompt))
    return policy


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("fcfs", "abc"),
        ("lpm", "cab"),  # 75, 70, 0 cached
        ("shortest-prefill-first", "cab"),  # 5, 30, 60 to prefill
        ("sjf", "bca"),  # 60, 80, 100 in all
        ("hrrn", "abc"),  # nothing prefilled since they came: all equal
    ],
)
def test_orders(order: str, expected: str) -> None:
    assert "".join(waiting(order).plan(0.0, KV).order) == expected


def test_lpm_counts_what_waits_on_the_host() -> None:
    policy = waiting("lpm")
    policy.host = HostTier(1000)
    policy.host.offload(0, 59, {"b"})
    policy.host.offload(70, 90, {"a"})
    # a has 70 + 20, c 75, b 59 cached.
    assert policy.plan(0.0, KV).order == ("a", "c", "b")


def test_hrrn_ages_by_tokens_prefilled_since_arrival() -> None:
    policy = waiting("hrrn")
    policy.turn_started("c", 1.0)  # 5 tokens: a has 5/30, b 5/60
    policy.turn_arrived(TurnRequest("d", "d", 1.0, 1))  # and d none
    assert policy.plan(1.0, KV).order == ("a", "b", "d")
    policy.turn_started("b", 2.0)  # 60 more: a 65/30, d 60/1
    assert policy.plan(2.0, KV).order == ("d", "a")


@pytest.mark.parametrize("order", ["lpm", "hrrn", "shortest-prefill-first"])
def test_above_128_waiting_lpm_and_hrrn_take_turns_as_they_came(order: str) -> None:
    policy = StockPolicy(order, LeastRecentlyUsed)
    for number in range(129):
        policy.turn_arrived(TurnRequest(f"{number:03}", f"{number:03}", 0.0, 1000 - number))
    as_they_came = tuple(f"{number:03}" for number in range(129))
    policy.turn_started("000", 0.0)
    policy.turn_arrived(TurnRequest("last", "last", 0.0, 500))
    assert (policy.plan(0.0, KV).order == (*as_they_came[1:], "last")) == (order != "shortest-prefill-first")


def test_a_turn_taken_back_goes_to_the_end_of_the_queue() -> None:
    policy = waiting("fcfs")
    policy.turn_started("a", 0.0)
    policy.turn_requeued("a", 1.0)
    assert policy.plan(1.0, KV).order == ("b", "c", "a")


def grown(
    paths: PathTree, eviction: LeastRecentlyUsed, session: str, node: int, tokens: int, now_s: float = 0.0
) -> None:
    """The session's context goes on in `node`, and that is used."""
    paths.add(node, paths.frontier(session), tokens)
    paths.place(session, node)
    eviction.used(session, now_s)


def evicted(paths: PathTree, eviction: LeastRecentlyUsed, count: int, now_s: float = 0.0, locked=()) -> list[int]:
    found: list[int] = []
    for node in eviction.victims(now_s):
        if node in locked:
            continue
        found.append(node)
        paths.remove(node)
        if len(found) == count:
            break
    return found


def test_lru_takes_the_path_that_was_used_longest_ago_from_its_end() -> None:
    paths = PathTree()
    eviction = LeastRecentlyUsed(paths)
    grown(paths, eviction, "a", 1, 10)
    grown(paths, eviction, "b", 2, 10)
    grown(paths, eviction, "b", 3, 10)
    grown(paths, eviction, "a", 4, 10)
    assert evicted(paths, eviction, 9) == [3, 2, 4, 1]


def test_lru_goes_on_where_it_was_stopped() -> None:
    paths = PathTree()
    eviction = LeastRecentlyUsed(paths)
    for node in (1, 2, 3):
        grown(paths, eviction, "a", node, 10)
    assert evicted(paths, eviction, 1) == [3]
    assert evicted(paths, eviction, 1) == [2]
    grown(paths, eviction, "b", 4, 10)
    assert evicted(paths, eviction, 9) == [1, 4]


def test_lru_offers_a_locked_leaf_again() -> None:
    paths = PathTree()
    eviction = LeastRecentlyUsed(paths)
    grown(paths, eviction, "a", 1, 10)
    grown(paths, eviction, "b", 2, 10)
    assert evicted(paths, eviction, 9, locked={1}) == [2]
    assert evicted(paths, eviction, 9) == [1]


def test_lru_keeps_a_shared_start_as_long_as_its_latest_user() -> None:
    paths = PathTree()
    eviction = LeastRecentlyUsed(paths)
    grown(paths, eviction, "a", 1, 10)
    paths.place("b", 1)
    grown(paths, eviction, "b", 2, 10)
    grown(paths, eviction, "c", 3, 10)
    grown(paths, eviction, "a", 4, 10)
    # b's end, c, then a's end and with it the start that a used last.
    assert evicted(paths, eviction, 9) == [2, 3, 4, 1]


def test_lru_does_not_know_that_a_session_ended() -> None:
    paths = PathTree()
    eviction = LeastRecentlyUsed(paths)
    grown(paths, eviction, "a", 1, 10)
    grown(paths, eviction, "b", 2, 10)
    eviction.ended("b")
    paths.forget("b")
    assert evicted(paths, eviction, 9) == [1, 2]


def test_tlru_takes_tails_that_can_be_recomputed_in_time_first() -> None:
    paths = PathTree()
    eviction = TailOptimised(paths, threshold_tokens=30, next_prompt_tokens=10)
    grown(paths, eviction, "a", 1, 50)
    grown(paths, eviction, "b", 2, 50)
    grown(paths, eviction, "b", 3, 20)
    # b was 70 tokens long and needs 70 + 10 - 30 = 50: node 3 begins there and is safe to take; node 2 begins at 0,
    # which is before. a needs 30, and its node begins before that too.
    assert evicted(paths, eviction, 9) == [3, 1, 2]


def test_tlru_measures_by_the_longest_length_not_by_what_is_left() -> None:
    paths = PathTree()
    eviction = TailOptimised(paths, threshold_tokens=30, next_prompt_tokens=10)
    for node in (1, 2, 3):
        grown(paths, eviction, "a", node, 20)
    grown(paths, eviction, "b", 4, 60)
    grown(paths, eviction, "a", 5, 1)
    # a was 61 tokens long and needs 41. Node 5 begins at 60 and goes first. Node 3 begins at 40: it stays, though it
    # would go if the length were taken anew from the 60 tokens that are left.
    assert evicted(paths, eviction, 2) == [5, 4]


def test_ttl_spares_what_a_live_session_used_lately() -> None:
    paths = PathTree()
    eviction = TimeToLive(paths, seconds=2.0)
    grown(paths, eviction, "a", 1, 10, now_s=10.0)
    grown(paths, eviction, "b", 2, 10, now_s=10.5)
    eviction.ended("b")
    paths.forget("b")
    assert evicted(paths, eviction, 9, now_s=11.0) == [2, 1]  # in the end it goes too


def test_ttl_is_over_after_its_time() -> None:
    paths = PathTree()
    eviction = TimeToLive(paths, seconds=2.0)
    grown(paths, eviction, "a", 1, 10, now_s=10.0)
    grown(paths, eviction, "b", 2, 10, now_s=12.5)
    assert evicted(paths, eviction, 1, now_s=12.0) == [1]


def test_every_name_makes_a_policy_that_plans() -> None:
    for order in ORDERS:
        for eviction in EVICTIONS.values():
            policy = StockPolicy(order, eviction)
            assert policy.plan(0.0, KV).order == ()
            assert list(policy.victims(0.0)) == []
