"""Tool gaps: quantiles within a bucket, memory bounded, old gaps forgotten, state that survives a copy."""

from __future__ import annotations

import json
import math
import random

import pytest

from agentinfer.gap_histogram import BUCKETS_A_DOUBLING, NEVER, NUM_BUCKETS, GapHistogram, bucket_of
from agentinfer.tool_gaps import MAX_NAME_CHARS, NO_TOOL, OTHER_TOOLS, SEVERAL_TOOLS, ToolGaps

ONE_BUCKET = 2 ** (1 / BUCKETS_A_DOUBLING)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_a_quantile_is_at_most_a_bucket_above_the_exact_one(share, spread):
    rng = random.Random(3)
    gaps_s = sorted(rng.lognormvariate(0.0, spread) for _ in range(1000))
    histogram = GapHistogram(half_life_gaps=10_000)
    for gap_s in gaps_s:
        histogram.observe(gap_s)
    exact_s = gaps_s[math.ceil(share * 1000) - 1]
    assert exact_s <= histogram.quantile(share) * (1 + 1e-9)
    assert histogram.quantile(share) <= exact_s * ONE_BUCKET * (1 + 1e-9)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e-9, 1e9], ids=["negative", "zero", "tiny", "huge"])
def test_extreme_gaps_fit(seconds):
    histogram = GapHistogram()
    histogram.observe(seconds)
    assert histogram.quantile(0.5) == pytest.approx(max(0.0, seconds))
    assert histogram.max_s == max(seconds, 0.0)


def test_no_gap_has_no_quantile():
    assert GapHistogram().quantile(0.5) is None
    assert ToolGaps().quantile("bash", 0.5) is None
    assert GapHistogram().summary().count == 0


def test_gaps_are_filed_by_tool():
    gaps = ToolGaps()
    assert gaps.observe(("bash",), 1.0) == "bash"
    assert gaps.observe(("bash", "bash"), 3.0) == "bash"
    assert gaps.observe(("bash", "read"), 9.0) == SEVERAL_TOOLS
    assert gaps.observe((), 9.0) == NO_TOOL
    summaries = gaps.summaries()
    assert list(summaries) == ["bash", NO_TOOL, SEVERAL_TOOLS]
    assert (summaries["bash"].count, summaries["bash"].mean_s, summaries["bash"].max_s) == (2, 2.0, 3.0)
    assert summaries["bash"].as_dict()["p99_s"] == 3.0


def test_names_are_short_enough_and_fit_to_be_written():
    gaps = ToolGaps()
    assert gaps.observe(("x" * 1000,), 9.0) == "x" * MAX_NAME_CHARS
    assert gaps.observe(("\ud800",), 9.0) == "?"


def test_the_number_of_tools_is_bounded_and_no_gap_is_lost():
    gaps = ToolGaps(max_tools=3)
    for number in range(10):
        gaps.observe((f"tool{number}",), float(number))
    summaries = gaps.summaries()
    assert list(summaries) == ["tool7", "tool8", "tool9", OTHER_TOOLS]
    assert summaries[OTHER_TOOLS].count == 7
    assert summaries[OTHER_TOOLS].max_s == 6.0


def test_a_tool_in_use_is_not_forgotten():
    gaps = ToolGaps(max_tools=2)
    for number in range(5):
        gaps.observe(("bash",), 1.0)
        gaps.observe((f"tool{number}",), 1.0)
    assert gaps.summaries()["bash"].count == 5


def test_a_table_for_no_tool_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        ToolGaps(max_tools=0)
    with pytest.raises(ValueError, match="at least 1"):
        GapHistogram(half_life_gaps=0)


def test_a_gap_weighs_half_after_a_half_life():
    histogram = GapHistogram(half_life_gaps=64)
    histogram.observe(100.0)
    for _ in range(64 + 63):
        histogram.observe(1.0)
    assert histogram.weights[bucket_of(100.0)] == 0.5


def test_a_tool_that_changed_is_relearned_within_two_half_lives():
    histogram = GapHistogram(half_life_gaps=64)
    for _ in range(1000):
        histogram.observe(1.0)
    for _ in range(128):
        histogram.observe(60.0)
    assert histogram.quantile(0.5) == pytest.approx(60.0)
    assert 20 < histogram.summary().mean_s <= 60
    assert histogram.count == 1128


def test_weights_are_bounded_and_an_old_gap_leaves_no_trace():
    histogram = GapHistogram(half_life_gaps=64)
    histogram.observe(1000.0)
    for _ in range(64 * 12):
        histogram.observe(1.0)
        assert sum(histogram.weights) <= 2 * 64
    assert histogram.weights[bucket_of(1000.0)] == 0.0


def test_weights_change_only_with_the_version():
    histogram = GapHistogram(half_life_gaps=64)
    rng = random.Random(2)
    changes = 0
    for _ in range(1000):
        before, version = list(histogram.weights), histogram.version
        histogram.observe(rng.expovariate(1.0))
        if histogram.version == version:
            assert list(histogram.weights) == before
        else:
            changes += 1
    assert 1000 / 16 <= changes <= 1000 / 3, "taken in too rarely or one by one"


def test_calls_without_return_are_no_gaps():
    histogram = GapHistogram()
    for _ in range(3):
        histogram.observe(2.0)
    histogram.observe_never()
    summary = histogram.summary()
    assert (summary.count, summary.mean_s, summary.p99_s, summary.never_share) == (3, 2.0, 2.0, 0.25)
    assert histogram.weights[NEVER] == 1.0


def test_the_population_counts_every_tool_alike():
    gaps = ToolGaps()
    for _ in range(4000):
        gaps.observe(("quick",), 0.01)
    for _ in range(400):
        gaps.observe(("slow",), 100.0)
    quick, slow = gaps.population[bucket_of(0.01)], gaps.population[bucket_of(100.0)]
    assert 0.95 < slow / quick <= 1.0
    assert sum(gaps.population) == pytest.approx(quick + slow)


def test_people_are_no_tools():
    gaps = ToolGaps()
    for _ in range(100):
        gaps.observe((), 100.0)
    assert sum(gaps.population) == 0.0


def stream(num_gaps, seed):
    rng = random.Random(seed)
    for number in range(num_gaps):
        names = rng.choice([("bash",), ("read",), ("bash", "read"), (), (f"rare{rng.randrange(20)}",)])
        yield names, rng.lognormvariate(0, 2), float(number) if rng.random() < 0.5 else None


@pytest.mark.parametrize("cut", [0, 1, 7, 333, 999])
def test_a_copy_of_the_state_goes_on_alike(cut):
    whole, copied = (ToolGaps(max_tools=8, half_life_gaps=32) for _ in range(2))
    for number, (names, seconds, at_unix_s) in enumerate(stream(1000, seed=4)):
        if number == cut:
            copied = ToolGaps.from_state(json.loads(json.dumps(copied.state())), max_tools=8, half_life_gaps=32)
        for gaps in (whole, copied):
            if seconds > 30:
                gaps.observe_never(names)
            else:
                gaps.observe(names, seconds, at_unix_s)
    assert whole.state() == copied.state()
    assert whole.summaries() == copied.summaries()
    assert whole.latest("bash") == copied.latest("bash")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.update(half_life_gaps=7), "half_life_gaps"),
        (lambda state: state.pop("tools"), "tools"),
        (lambda state: state.update(tools=3), "TypeError"),
        (lambda state: state["tools"].append(state["tools"][0]), "distinct names"),
        (lambda state: state["tools"].extend({**state["tools"][0], "name": f"t{n}"} for n in range(64)), "at most 64"),
        (lambda state: state["tools"][0].update(name="x" * 200), "at most 128"),
        (lambda state: state["tools"][0].update(weights=[[NUM_BUCKETS + 1, 1.0]]), "buckets from 0 to 120"),
        (lambda state: state["tools"][0].update(weights=[[-1, 1.0]]), "buckets from 0 to 120"),
        (lambda state: state["tools"][0].update(weights=[[0, -1.0]]), "expected a number"),
        (lambda state: state["tools"][0].update(weights=[[0, math.inf]]), "expected a number"),
        (lambda state: state["tools"][0].update(weights=[[0, 1e9]]), "expected a number"),
        (lambda state: state["tools"][0].update(fresh=[0.5]), "buckets from 0 to 120"),
        (lambda state: state["tools"][0].update(since_halving=1e300), "since_halving"),
        (lambda state: state.update(until_population=10**9), "until_population"),
        (lambda state: state.update(num_observed="many"), "num_observed"),
        (lambda state: state["tools"][0].update(count=True), "expected a number"),
        (lambda state: state["tools"][0].update(latest=[1.0]), "values to unpack"),
        (lambda state: state["population"].append([3, math.nan]), "population"),
        (lambda state: state["population"].append([121, 1.0]), "buckets from 0 to 120"),
    ],
)
def test_a_state_that_is_none_is_refused(change, says):
    gaps = ToolGaps()
    for names, seconds, at_unix_s in stream(50, seed=1):
        gaps.observe(names, seconds, at_unix_s)
    state = gaps.state()
    change(state)
    with pytest.raises(ValueError, match=says):
        ToolGaps.from_state(state)


def test_a_name_that_comes_back_has_a_version_of_its_own():
    """Else who derived tables from the forgotten histogram would take them for those of the new one."""
    gaps = ToolGaps(max_tools=1)
    seen = set()
    for _ in range(5):
        for name in ("a", "b"):
            gaps.observe((name,), 1.0)
            version = gaps.histogram(name).version
            assert (name, version) not in seen
            seen.add((name, version))
