"""Width control on simulated engines: close to an oracle where text repeats, next to no loss where it does not.

Everything is counted in simulated seconds from fixed seeds, so the bounds hold or do not hold on every machine alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.width import ENGINES, Controlled, FixedWidth, Outcome, Text, oracle, repeating_text, simulate


def plain(engine: str, text: Text) -> Outcome:
    return simulate(ENGINES[engine], text, FixedWidth(1))


def controlled(engine: str, text: Text) -> Outcome:
    return simulate(ENGINES[engine], text, Controlled())


@pytest.mark.parametrize("requests", [1, 4])
@pytest.mark.parametrize("engine", ["cpu", "gpu", "tiles of 8", "noisy", "drifting"])
def test_regret_against_an_oracle_is_small(engine, requests):
    text = repeating_text(requests, 600, repeats=0.4, seed=requests)
    best = oracle(ENGINES[engine], text)
    assert best.tokens_per_second > 1.05 * plain(engine, text).tokens_per_second, "or there is nothing to find"
    assert controlled(engine, text).tokens_per_second >= best.tokens_per_second / 1.05


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_an_overconfident_drafter_is_seen_through(engine):
    text = repeating_text(1, 1500, repeats=0.4, overconfidence=4.0, seed=1)
    best = oracle(ENGINES[engine], text, power=4.0)
    assert controlled(engine, text).tokens_per_second >= best.tokens_per_second / 1.05


@pytest.mark.parametrize("requests", [1, 4, 16])
@pytest.mark.parametrize("engine", list(ENGINES))
def test_text_that_never_repeats_costs_next_to_nothing(engine, requests):
    text = repeating_text(requests, 600, repeats=0.0, seed=requests)
    assert controlled(engine, text).tokens_per_second >= plain(engine, text).tokens_per_second / 1.03


@pytest.mark.parametrize("requests", [1, 4, 16])
@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_drafter_that_is_always_wrong_costs_next_to_nothing(engine, requests):
    text = repeating_text(requests, 600, repeats=0.3, seed=requests)
    wrong = replace(text, matches=np.zeros_like(text.matches))
    assert controlled(engine, wrong).tokens_per_second >= plain(engine, wrong).tokens_per_second / 1.03


@pytest.mark.parametrize(("engine", "requests"), [("cpu", 1), ("gpu", 1), ("gpu", 4), ("noisy", 1)])
def test_speculation_comes_back_when_text_begins_to_repeat(engine, requests):
    text = repeating_text(requests, 900, repeats=[0.0, 0.0, 0.7], seed=requests)
    stale = replace(text, matches=text.matches & (np.arange(text.matches.shape[1]) >= 600))
    base = plain(engine, stale).tokens_per_second
    possible = oracle(ENGINES[engine], stale).tokens_per_second / base - 1.0
    assert controlled(engine, stale).tokens_per_second / base - 1.0 >= 0.7 * possible


def test_a_fixed_width_loses_where_control_does_not():
    text = repeating_text(4, 400, repeats=0.1, seed=4)
    base = plain("cpu", text).tokens_per_second
    assert simulate(ENGINES["cpu"], text, FixedWidth(16)).tokens_per_second < 0.5 * base
    assert controlled("cpu", text).tokens_per_second > 0.97 * base
