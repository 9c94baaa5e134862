"""Fitting a threshold to a wished share of escalated steps, and the file that keeps it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentinfer.collab_lang import threshold
from agentinfer.collab_lang.threshold import Threshold, fit, read, share_under, write
from agentinfer.errors import ConfigError

TWENTY = [place / 20 for place in range(20)]
SAVED = fit(TWENTY, 0.2, "small", "block")

shares = st.floats(0.0, 1.0, allow_subnormal=True)
samples = st.lists(shares, min_size=20, max_size=60) | st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0]), min_size=20)
targets = st.floats(0.001, 0.999)


def test_twenty_steps_are_enough() -> None:
    assert SAVED.value == pytest.approx((0.15 + 0.2) / 2)
    assert (SAVED.rate, SAVED.samples) == (0.2, 20)
    # Wilson's interval of 4 in 20, from tables.
    assert (SAVED.rate_low, SAVED.rate_high) == (pytest.approx(0.081, abs=0.001), pytest.approx(0.416, abs=0.001))
    with pytest.raises(ConfigError, match="19 judged steps, expected at least 20"):
        fit(TWENTY[:19], 0.2, "small", "block")


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="target rate"):
        fit(TWENTY, rate, "small", "block")


@pytest.mark.parametrize(("target", "rate"), [(0.1, 0.0), (0.9, 1.0)])
def test_equal_steps_fall_on_one_side_together(target: float, rate: float) -> None:
    found = fit([0.7] * 20, target, "small", "block")
    assert found.rate == rate
    assert (found.value <= 0.7) == (rate == 0.0)


def test_a_threshold_stands_between_neighbouring_floats() -> None:
    """Their middle is rounded to the lower one, which would then not be under it."""
    assert fit([0.5] * 10 + [math.nextafter(0.5, 1.0)] * 10, 0.5, "small", "block").rate == 0.5


def test_steps_that_are_sure_cannot_be_escalated() -> None:
    """No threshold is above 1: with half of the steps at 1, half is the most that can be escalated."""
    assert fit([0.5] * 10 + [1.0] * 10, 0.9, "small", "block").rate == 0.5
    assert fit([1.0] * 20, 0.9, "small", "block").rate == 0.0


@given(samples, targets)
def test_no_threshold_comes_nearer_to_the_target(probabilities: list[float], target: float) -> None:
    found = fit(probabilities, target, "small", "block")
    assert found.rate == share_under(probabilities, found.value)
    reachable = {share_under(probabilities, cut) for cut in (*probabilities, 0.0, 1.0)}
    assert abs(found.rate - target) == min(abs(each - target) for each in reachable)
    assert 0.0 <= found.rate_low <= found.rate <= found.rate_high <= 1.0


@given(samples, targets, targets)
def test_a_higher_target_never_escalates_fewer(probabilities: list[float], one: float, other: float) -> None:
    low, high = (fit(probabilities, each, "small", "block") for each in sorted((one, other)))
    assert low.value <= high.value
    assert low.rate <= high.rate


@given(samples, targets, st.text(max_size=20))
def test_the_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, probabilities: list[float], target: float, model: str
) -> None:
    path = tmp_path_factory.mktemp("fitted") / "threshold.json"
    found = fit(probabilities, target, model, "verdict")
    write(found, path)
    assert read(path) == found
    assert [each.name for each in path.parent.iterdir()] == ["threshold.json"]


def document(**changes: object) -> str:
    fields = {"format": threshold.FORMAT, "version": threshold.VERSION, **asdict(SAVED), **changes}
    return json.dumps({key: value for key, value in fields.items() if value != "absent"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not readable"),
        ("{", "not readable"),
        ("\udcff", "not readable"),
        ("[" * 100_000, "not readable"),
        ("[]", "not a threshold"),
        ('{"format": "agentinfer.costs", "version": 1}', "not a threshold"),
        (document(version=2), "not a threshold of version 1"),
        (document(value="absent"), "missing or unknown: value"),
        (document(note="hello"), "missing or unknown: note"),
        (document(value=1.5), "value: got 1.5"),
        (document(value=None), "value: got None"),
        (document(value=True), "value: got True"),
        (document(value=float("nan")), "value: got nan"),
        (document(rate="0.2"), "rate: got '0.2'"),
        (document(model=7), "model: got 7"),
        (document(samples=-1), "samples: got -1"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "threshold.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=complaint) as caught:
        read(path)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_threshold_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "threshold.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        read(path)


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="agentinfer collab calibrate"):
        read(tmp_path / "none.json")


def test_a_path_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write(SAVED, tmp_path / "folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        write(SAVED, tmp_path / "absent" / "threshold.json")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_writing_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "threshold.json"
    write(SAVED, path)
    newer: Threshold = replace(SAVED, value=0.9)
    write(newer, path)
    assert read(path) == newer
