"""Tool gaps: quantiles within a bucket, memory bounded."""

from __future__ import annotations

import math
import random

import pytest

from agentinfer.tool_gaps import BUCKETS_A_DOUBLING, OTHER_TOOLS, SEVERAL_TOOLS, GapHistogram, ToolGaps

ONE_BUCKET = 2 ** (1 / BUCKETS_A_DOUBLING)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_a_quantile_is_at_most_a_bucket_above_the_exact_one(share, spread):
    rng = random.Random(3)
    gaps_s = sorted(rng.lognormvariate(0.0, spread) for _ in range(1000))
    histogram = GapHistogram()
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
    assert gaps.observe((), 9.0) is None
    summaries = gaps.summaries()
    assert list(summaries) == ["bash", SEVERAL_TOOLS]
    assert (summaries["bash"].count, summaries["bash"].mean_s, summaries["bash"].max_s) == (2, 2.0, 3.0)
    assert summaries["bash"].as_dict()["p99_s"] == 3.0


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
