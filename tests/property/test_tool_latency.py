"""Tool latency: what is still to come of a gap agrees with brute force, for every history, tool and time waited."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentinfer.gap_histogram import NEVER, NUM_BUCKETS, UPPER_EDGES_S, GapHistogram, bucket_of
from agentinfer.radix_ext.gap_distribution import (
    EDGES_S,
    LONGEST_WAIT_S,
    MEDIAN_OF_UNKNOWN_S,
    GapDistribution,
    broad_prior,
    slowest_of,
)
from agentinfer.radix_ext.tool_latency import MAX_INDICES, ToolLatency, usual_s
from agentinfer.tool_gaps import ToolGaps

TOOLS = st.lists(st.sampled_from(["bash", "read", "search", "build"]), max_size=3).map(tuple)
SECONDS = st.one_of(st.floats(0, 0.01), st.floats(0, 30), st.floats(0, 1e5), st.floats(-1, 1e12))
WAITED_S = st.one_of(st.just(0.0), st.floats(0, 60), st.floats(0, 1e7))
GAP = st.tuples(TOOLS, st.one_of(SECONDS, st.none()))  # None: never came back
HISTORY = st.lists(GAP, max_size=120)
WEIGHTS = st.dictionaries(st.integers(0, NEVER), st.floats(0.01, 100), max_size=12)


def feed(latency: ToolLatency, history) -> ToolLatency:
    for tools, seconds in history:
        if seconds is None:
            latency.observe_never(tools)
        else:
            latency.observe(tools, seconds)
    return latency


def distribution_of(weights: dict[int, float]) -> GapDistribution:
    """Positive everywhere, as all that is asked for are."""
    dense = broad_prior()
    for bucket, weight in weights.items():
        dense[bucket] += weight
    return GapDistribution.of(dense)


@given(HISTORY, TOOLS, st.lists(WAITED_S, min_size=2, max_size=20), st.one_of(st.none(), st.floats(0, 1e6)))
def test_every_answer_is_a_chance_or_a_time(history, tools, waits_s, expected_s):
    latency = feed(ToolLatency(), history)
    found = latency.distribution(tools, expected_s)
    assert found.chances.sum() == pytest.approx(1.0)
    assert found.chances[:NEVER].min() > 0
    survivals = [found.exceeds(waited_s) for waited_s in sorted(waits_s)]
    assert all(0 <= later <= sooner <= 1 + 1e-12 for sooner, later in pairwise(survivals))
    for waited_s in waits_s:
        rate = latency.return_rate(tools, waited_s, expected_s)
        assert 0 < rate < math.inf
        assert 0 < found.expected_remaining_s(waited_s) < math.inf
        half_s, most_s = (found.remaining_quantile_s(share, waited_s) for share in (0.5, 0.9))
        assert 0 <= half_s <= most_s


@given(WEIGHTS, st.floats(0, 1e5), st.floats(0.01, 0.99))
def test_a_quantile_of_the_rest_leaves_its_share(weights, waited_s, share):
    found = distribution_of(weights)
    rest_s = found.remaining_quantile_s(share, waited_s)
    wanted = found.exceeds(waited_s) * (1 - share)
    if rest_s == math.inf:
        assert wanted < found.chances[NEVER]
    elif waited_s + rest_s <= LONGEST_WAIT_S:
        assert found.exceeds(waited_s + rest_s) == pytest.approx(wanted, rel=1e-6)


@settings(max_examples=30)
@given(WEIGHTS)
def test_rates_are_the_best_horizon_of_a_fine_grid(weights):
    """No horizon between the edges is better, and the best edge is met."""
    found = distribution_of(weights)
    rates = found.return_rates()
    fine_s = np.unique(np.concatenate([np.linspace(low, high, 20) for low, high in pairwise(EDGES_S)]))
    survival = np.interp(fine_s, EDGES_S, found.survival)
    waited = np.concatenate(([0.0], np.cumsum(np.diff(fine_s) * (survival[1:] + survival[:-1]) / 2)))
    for bucket in range(0, NUM_BUCKETS, 7):
        middle_s = (EDGES_S[bucket] + EDGES_S[bucket + 1]) / 2
        ahead = fine_s > middle_s * (1 + 1e-9)
        at_middle = np.interp(middle_s, fine_s, survival)
        until_middle_s = np.interp(middle_s, fine_s, waited)
        brute = np.max((at_middle - survival[ahead]) / (waited[ahead] - until_middle_s))
        assert rates[bucket] == pytest.approx(brute, rel=0.02)


@pytest.mark.parametrize(
    ("spread", "waited_s"),
    [
        (0.2, 0.0),
        (0.2, 2.0),
        (0.2, 5.0),
        *((spread, waited_s) for spread in (1.0, 2.5) for waited_s in (0.0, 2.0, 9.0, 40.0)),
    ],
)
def test_rates_and_rests_are_those_of_the_samples(spread, waited_s):
    """Against the gaps themselves, to the width of a bucket."""
    rng = np.random.default_rng(11)
    gaps_s = rng.lognormal(math.log(5), spread, 40_000)
    histogram = GapHistogram(half_life_gaps=10**6)
    for gap_s in gaps_s:
        histogram.observe(gap_s)
    found = GapDistribution.of(np.array(histogram.weights) + 1e-9 * broad_prior())
    waited_s = float((EDGES_S[bucket_of(waited_s)] + EDGES_S[bucket_of(waited_s) + 1]) / 2)
    rest_s = np.sort(gaps_s[gaps_s > waited_s]) - waited_s
    assert found.exceeds(waited_s) == pytest.approx(len(rest_s) / len(gaps_s), rel=0.1)
    assert found.expected_remaining_s(waited_s) == pytest.approx(rest_s.mean(), rel=0.1)
    for share in (0.5, 0.9):
        brute_s = np.quantile(rest_s, share)
        # Half a bucket of the whole gap, since the rest is a difference of two of them.
        assert found.remaining_quantile_s(share, waited_s) == pytest.approx(brute_s, abs=0.1 * (waited_s + brute_s))
    returned = np.arange(1, len(rest_s) + 1)
    held_s = np.cumsum(rest_s) + rest_s * (len(rest_s) - returned)
    # Rates of very short horizons are noise in the samples: at least a hundredth of them has to have returned.
    brute = np.max((returned / held_s)[len(rest_s) // 100 :])
    assert found.return_rates()[bucket_of(waited_s)] == pytest.approx(brute, rel=0.25)


def test_a_fixed_delay_returns_at_its_time():
    latency = ToolLatency()
    for _ in range(500):
        latency.observe(("sleep",), 10.0)
    assert latency.return_rate(("sleep",), 0.0) == pytest.approx(1 / 10, rel=0.15)
    assert latency.return_rate(("sleep",), 8.0) == pytest.approx(1 / 2, rel=0.4)
    assert latency.return_rate(("sleep",), 60.0) < 1 / 30, "what is overdue is lost, not due at any moment"


@given(HISTORY, st.lists(st.tuples(TOOLS, WAITED_S, st.one_of(st.none(), st.floats(0, 100))), min_size=1, max_size=30))
def test_many_at_once_are_each_alone(history, asked):
    latency = feed(ToolLatency(), history)
    indices = np.array([latency.index_of(tools, expected_s) for tools, _, expected_s in asked])
    together = latency.return_rates(indices, np.array([waited_s for _, waited_s, _ in asked]))
    for (tools, waited_s, expected_s), rate in zip(asked, together, strict=True):
        assert rate == ToolLatency(latency.gaps).return_rate(tools, waited_s, expected_s)
        assert rate == latency.distribution(tools, expected_s).return_rates()[bucket_of(waited_s)]


@given(HISTORY, HISTORY, st.lists(st.tuples(TOOLS, WAITED_S), min_size=1, max_size=5), st.booleans())
def test_the_same_gaps_give_the_same_rates_after_loading_too(before, after, asked, asks_between):
    """Bit for bit, whether or not one of them was asked in between."""
    ours = feed(ToolLatency(), before)
    if asks_between:
        for tools, waited_s in asked:
            ours.return_rate(tools, waited_s)
    theirs = ToolLatency(ToolGaps.from_state(json.loads(json.dumps(ours.gaps.state()))))
    for latency in (ours, theirs):
        feed(latency, after)
    for tools, waited_s in asked:
        assert ours.return_rate(tools, waited_s) == theirs.return_rate(tools, waited_s)


@pytest.mark.parametrize("changed_s", [0.05, 300.0])
def test_a_tool_that_changed_is_relearned(changed_s):
    latency = ToolLatency(ToolGaps(half_life_gaps=64))
    for _ in range(2000):
        latency.observe(("deploy",), 5.0)
    for _ in range(4 * 64):
        latency.observe(("deploy",), changed_s)
    fresh = ToolLatency(ToolGaps(half_life_gaps=64))
    for _ in range(4 * 64):
        fresh.observe(("deploy",), changed_s)
    relearned_s = latency.distribution(("deploy",)).remaining_quantile_s(0.5)
    assert relearned_s == pytest.approx(changed_s, rel=0.2)
    assert relearned_s == pytest.approx(fresh.distribution(("deploy",)).remaining_quantile_s(0.5), rel=0.2)


def test_an_empty_model_answers_by_the_broad_prior():
    found = ToolLatency().distribution(("anything",))
    for waited_s in (0.0, 1.0, 10.0, 1000.0):
        assert found.exceeds(waited_s) == pytest.approx(1 / (1 + waited_s / MEDIAN_OF_UNKNOWN_S), rel=0.01)
        assert found.remaining_quantile_s(0.5, waited_s) == pytest.approx(waited_s + MEDIAN_OF_UNKNOWN_S, rel=0.03)


def test_an_unknown_tool_is_taken_for_one_of_the_known():
    latency = ToolLatency()
    for _ in range(200):
        for tool in ("read", "grep", "list"):
            latency.observe((tool,), 0.02)
    unknown = latency.distribution(("write",))
    assert unknown.remaining_quantile_s(0.5) < 0.05, "as quick as the others"
    assert unknown.exceeds(60.0) > 0.005, "but not as certainly"
    for _ in range(100):
        latency.observe(("write",), 45.0)
    assert latency.distribution(("write",)).remaining_quantile_s(0.5) == pytest.approx(45.0, rel=0.2)


def test_two_gaps_do_not_make_a_rule():
    latency = ToolLatency()
    for _ in range(2):
        latency.observe(("bash",), 0.1)
    assert latency.survival(("bash",), 10.0) > 0.1


def test_several_tools_are_as_slow_as_the_slowest_until_their_own_gaps_are_known():
    latency = ToolLatency()
    for _ in range(300):
        latency.observe(("read",), 0.1)
        latency.observe(("build",), 60.0)
    both, build = latency.distribution(("read", "build")), latency.distribution(("build",))
    assert both.remaining_quantile_s(0.5) == pytest.approx(build.remaining_quantile_s(0.5), rel=0.2)
    for _ in range(300):
        latency.observe(("build", "read"), 5.0)
    assert latency.distribution(("read", "build")).remaining_quantile_s(0.5) == pytest.approx(5.0, rel=0.2)


@given(st.lists(WEIGHTS, min_size=1, max_size=4), st.floats(0.002, 1e5))
def test_the_slowest_exceeds_a_time_unless_all_are_back(weights, at_s):
    members = [distribution_of(each) for each in weights]
    at_s = UPPER_EDGES_S[bucket_of(at_s)]
    all_back = math.prod(1 - member.exceeds(at_s) for member in members)
    assert GapDistribution.of(slowest_of(members)).exceeds(at_s) == pytest.approx(1 - all_back, abs=1e-9)


def test_a_hint_is_believed_until_twice_its_time_has_passed():
    latency = ToolLatency()
    for _ in range(500):
        latency.observe(("bash",), 0.2)
    hinted, learned = latency.distribution(("bash",), 100.0), latency.distribution(("bash",))
    assert learned.exceeds(10.0) < 0.02
    assert hinted.exceeds(10.0) == pytest.approx(0.8, abs=0.01)
    assert 20 < hinted.remaining_quantile_s(0.5, 30.0) < 120
    assert latency.return_rate(("bash",), 30.0, 100.0) == pytest.approx(1 / 70, rel=0.15)
    assert latency.return_rate(("bash",), 130.0, 100.0) > 3 * latency.return_rate(("bash",), 130.0)
    for waited_s in (250.0, 1000.0):
        assert hinted.remaining_quantile_s(0.5, waited_s) == pytest.approx(
            learned.remaining_quantile_s(0.5, waited_s), rel=1e-6
        )


def test_a_session_is_away_as_long_as_it_usually_is():
    latency = ToolLatency()
    for _ in range(200):
        latency.observe((), 60.0)
    own_s = None
    for pause_s in (3600.0, 3000.0, 4000.0):
        own_s = usual_s(own_s, pause_s)
    assert 3000 < own_s < 4000
    assert latency.survival((), 600.0) < 0.01
    assert latency.distribution((), own_s).exceeds(600.0) == pytest.approx(0.5, abs=0.02)
    assert latency.return_rate((), 600.0, own_s) == pytest.approx(1 / 3000, rel=0.3)
    assert usual_s(None, 0.0) > 0


def test_sessions_that_never_return_lower_the_rate_of_those_that_wait_long():
    faithful, leaving = ToolLatency(), ToolLatency()
    for number in range(500):
        for latency in (faithful, leaving):
            latency.observe(("bash",), 1.0 + number % 5)
        if number % 5 == 0:
            leaving.observe_never(("bash",))
    assert leaving.return_rate(("bash",), 0.0) < faithful.return_rate(("bash",), 0.0)
    assert leaving.return_rate(("bash",), 60.0) < faithful.return_rate(("bash",), 60.0) / 3
    assert leaving.distribution(("bash",)).remaining_quantile_s(0.5, 60.0) == math.inf
    assert leaving.distribution(("bash",)).expected_remaining_s() < 60


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("observe"), TOOLS, st.floats(0, 100)),
            st.tuples(st.just("never"), TOOLS, st.none()),
            st.tuples(st.just("ask"), TOOLS, st.one_of(st.none(), st.floats(0, 100))),
        ),
        max_size=150,
    )
)
def test_no_rate_is_out_of_date(steps):
    """With so few tools and indices that both are forgotten and come back all the time."""
    latency = ToolLatency(ToolGaps(max_tools=2, half_life_gaps=4), max_indices=3)
    for step, tools, number in steps:
        if step == "observe":
            latency.observe(tools, number)
        elif step == "never":
            latency.observe_never(tools)
        else:
            latency.return_rate(tools, 1.0, number)
        latency.check_integrity()


@pytest.mark.parametrize("tools", [("bash",), (), ("bash", "read")], ids=["one", "none", "several"])
def test_rates_of_a_known_tool_follow_it_between_surveys_of_the_population(tools):
    rng = np.random.default_rng(5)
    latency = ToolLatency()
    for gap_s in rng.lognormal(0, 1, 2000):
        latency.observe(tools, gap_s)
    index = np.array([latency.index_of(tools)])
    rates = {latency.return_rates(index, np.array([1.0]))[0]}
    for _ in range(300):
        latency.observe(tools, 30.0)
        latency.check_integrity()
        rates.add(latency.return_rates(index, np.array([1.0]))[0])
    assert 4 <= len(rates) <= 30, "not only when weights changed enough"


def test_indices_are_bounded_and_go_on_to_the_least_recently_asked_for():
    latency = ToolLatency()
    kept = latency.index_of(("bash",))
    for number in range(3 * MAX_INDICES):
        assert latency.index_of((f"made-up-{number}",)) < MAX_INDICES
        assert latency.index_of(("bash",)) == kept
    latency.observe(("bash",), 0.5)
    rates = latency.return_rates(np.arange(MAX_INDICES), np.zeros(MAX_INDICES))
    assert rates[kept] != rates[kept - 1]


def test_rates_follow_gaps_that_are_told_behind_an_index():
    latency = ToolLatency()
    index = np.array([latency.index_of(("bash",))])
    before = latency.return_rates(index, np.array([0.0]))[0]
    for _ in range(100):
        latency.observe(("bash",), 0.05)
    assert latency.return_rates(index, np.array([0.0]))[0] > 10 * before


@pytest.mark.parametrize(
    "weights",
    [np.zeros(NUM_BUCKETS + 1), np.ones(3), -np.ones(NUM_BUCKETS + 1), np.full(NUM_BUCKETS + 1, np.nan)],
    ids=["none", "too few", "negative", "not a number"],
)
def test_weights_of_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights of a positive sum"):
        GapDistribution.of(weights)
