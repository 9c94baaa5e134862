"""The shadow price, the score, and the table of candidates, against the equations worked by hand."""

from __future__ import annotations

import math
import random

import pytest

from agentinfer.radix_ext.order import Candidate, Candidates
from agentinfer.radix_ext.pressure import Pressure, pressure
from agentinfer.radix_ext.settings import SchedulingSettings

LOOSE, TIGHT = Pressure(0.0, 1.0), Pressure(4.0, 0.0)
ONE_TOKEN_A_SECOND = SchedulingSettings(prefill_tokens_per_s=1.0)


def test_the_price_is_half_its_limit_where_demand_meets_what_is_unused() -> None:
    found = pressure(obtainable_tokens=1000, reused_tokens=401, demanded_tokens=600, price_max=4.0, slope=4.0)
    assert found.price == pytest.approx(2.0)  # z = 600 / (599 + 1)
    assert found.looseness == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("obtainable", "reused", "demanded", "price"),
    [(10**6, 0, 10, 4 / (1 + math.exp(4))), (100, 100, 50, 4.0), (0, 0, 0, 4 / (1 + math.exp(4)))],
    ids=["nearly empty", "nothing unused", "nothing at all"],
)
def test_the_price_at_its_ends(obtainable: int, reused: int, demanded: int, price: float) -> None:
    assert pressure(obtainable, reused, demanded, 4.0, 4.0).price == pytest.approx(price, rel=1e-3)


def in_order(settings: SchedulingSettings, now_s: float, at: Pressure, **candidates: Candidate) -> list[str]:
    table = Candidates(settings)
    for rid, candidate in candidates.items():
        table.add(rid, candidate)
    return table.in_order(now_s, at)


def test_in_a_loose_cache_a_short_prompt_overtakes_a_cached_long_one() -> None:
    long, short = Candidate(1000, 900, 0.0, 0), Candidate(50, 0, 0.0, 0)
    settings = SchedulingSettings(prefill_tokens_per_s=1.0, hit_weight=0.0)
    assert in_order(settings, 0.0, LOOSE, long=long, short=short) == ["short", "long"]


def test_in_a_tight_cache_hits_go_first_and_new_tokens_wait() -> None:
    long, short = Candidate(1000, 990, 0.0, 0), Candidate(50, 0, 0.0, 0)
    assert in_order(ONE_TOKEN_A_SECOND, 0.0, TIGHT, short=short, long=long) == ["long", "short"]


def test_who_waited_longer_than_the_other_saves_goes_first() -> None:
    # 100 and 40 tokens of one second each, all new: the longer one loses 60 s of score and gains its 61 s of waiting.
    long, short = Candidate(100, 0, 0.0, 0), Candidate(40, 0, 61.0, 0)
    assert in_order(ONE_TOKEN_A_SECOND, 61.0, LOOSE, short=short, long=long) == ["long", "short"]
    just = Candidate(40, 0, 59.0, 0)
    assert in_order(ONE_TOKEN_A_SECOND, 61.0, LOOSE, short=just, long=long) == ["short", "long"]


def test_waiting_counts_more_for_a_session_that_came_far() -> None:
    far, new = Candidate(100, 0, 0.0, 50), Candidate(100, 0, 0.0, 0)
    assert in_order(ONE_TOKEN_A_SECOND, 10.0, LOOSE, new=new, far=far) == ["far", "new"]


def test_a_turn_whose_parent_waits_goes_first_by_what_idles() -> None:
    child, other = Candidate(100, 0, 0.0, 0, parent_tokens=30), Candidate(80, 0, 0.0, 0)
    assert in_order(ONE_TOKEN_A_SECOND, 0.0, LOOSE, other=other, child=child) == ["child", "other"]


def test_priority_goes_before_any_score() -> None:
    long, short = Candidate(1000, 0, 0.0, 0, priority=1), Candidate(10, 0, 0.0, 0)
    assert in_order(ONE_TOKEN_A_SECOND, 0.0, LOOSE, short=short, long=long) == ["long", "short"]


def test_the_table_holds_what_was_added_and_not_discarded() -> None:
    rng = random.Random(5)
    table, model = Candidates(ONE_TOKEN_A_SECOND), {}
    for step in range(2000):
        if model and rng.random() < 0.35:
            rid = rng.choice(list(model))
            table.discard(rid)
            del model[rid]
        elif model and rng.random() < 0.2:
            rid = rng.choice(list(model))
            prompt, _ = model[rid]
            hit = rng.randrange(2 * prompt)
            table.set_hit_tokens(rid, hit)
            model[rid] = (prompt, min(hit, prompt))
        else:
            prompt = rng.randrange(1, 500)
            model[f"r{step}"] = (prompt, 0)
            table.add(f"r{step}", Candidate(prompt, 0, float(step), 0))
        assert table.demanded_tokens() == sum(prompt - hit for prompt, hit in model.values())
        assert sorted(table.in_order(2000.0, TIGHT)) == sorted(model)
    assert len(model) > 64, "the table never had to grow"


def test_the_order_is_that_of_the_equation() -> None:
    rng = random.Random(6)
    settings = SchedulingSettings(hit_weight=1.3, need_weight=0.7, wait_weight=0.4, progress_weight=0.9)
    at = pressure(5000, 1000, 3000, settings.price_max, settings.price_slope)
    table, scores = Candidates(settings), {}
    for number in range(200):
        prompt = rng.randrange(1, 30_000)
        hit, arrived_s, turns = rng.randrange(prompt + 1), rng.uniform(0, 50), rng.randrange(90)
        table.add(f"r{number}", Candidate(prompt, hit, arrived_s, turns))
        need = at.looseness * prompt + (1 - at.looseness) * (prompt - hit)
        tokens = 1.3 * hit - (0.7 + at.price) * need
        scores[f"r{number}"] = tokens / 14_000 + 0.4 * (60 - arrived_s) * (1 + 0.9 * min(turns, 50) / 50)
    assert table.in_order(60.0, at) == sorted(scores, key=lambda rid: -scores[rid])
