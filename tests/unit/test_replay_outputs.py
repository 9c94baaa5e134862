"""Figures, tables, timeline, comparison and picture, on data whose true values are known."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentinfer.errors import AgentInferError
from agentinfer.replay import measure, perfetto, picture, report, table
from agentinfer.replay.client import Exchange
from agentinfer.replay.driver import SessionResult, TurnResult
from agentinfer.replay.svg import shorten, ticks
from tests.replay_fakes import a_session


def exchange(**changes: Any) -> Exchange:
    values: dict[str, Any] = {
        "latency_s": 2.0,
        "ttft_s": 0.5,
        "last_token_s": 1.9,
        "prompt_tokens": 100,
        "cached_tokens": 80,
        "completion_tokens": 15,
        "text": "x",
    }
    return Exchange(**{**values, **changes})


def replayed(name: str, exchanges: list[Exchange], gap_s: float = 1.0, **more: Any) -> SessionResult:
    session = a_session(name, len(exchanges))
    result = SessionResult(session, name, False, started_s=10.0, is_complete=not exchanges[-1].error, **more)
    now_s = result.started_s
    for index, one in enumerate(exchanges):
        is_last = index + 1 == len(exchanges)
        turn = TurnResult(index, now_s, one, ("bash",), 0.0 if is_last else gap_s)
        now_s += one.latency_s + turn.gap_s
        result.turns.append(turn)
    result.ended_s = now_s
    return result


def test_summary_figures_on_known_times() -> None:
    slow = exchange(latency_s=8.0, ttft_s=1.5, last_token_s=7.9, completion_tokens=65, cached_tokens=0)
    results = [replayed("a", [exchange(), exchange()]), replayed("b", [exchange(), slow])]
    summary = measure.summarise(results, has_cache_report=True)
    assert summary["completion_mean_s"] == pytest.approx((5.0 + 11.0) / 2)
    assert summary["completion_p50_s"] == pytest.approx(8.0)
    assert summary["completion_p95_s"] == pytest.approx(5.0 + 0.95 * 6.0)
    assert summary["worst_turn_s"] == 8.0
    assert summary["ttft_p50_s"] == 0.5
    assert summary["tpot_mean_s"] == pytest.approx(0.1)
    assert (summary["prompt_tokens_cached"], summary["prompt_tokens_computed"]) == (240, 160)
    assert summary["later_turns_hit_rate"] == pytest.approx(80 / 200)
    assert summary["wall_s"] == 11.0
    assert summary["output_tokens_per_s"] == pytest.approx((3 * 15 + 65) / 11.0)


def test_failed_sessions_and_turns_stay_out_of_the_times_and_in_the_counts() -> None:
    failed = Exchange(latency_s=600.0, error="no end of reply within 600 s", error_kind="timeout")
    summary = measure.summarise([replayed("a", [exchange()]), replayed("b", [exchange(), failed])], True)
    assert (summary["sessions"], summary["sessions_complete"], summary["errors"]) == (2, 1, 1)
    assert summary["errors_by_kind"] == {"timeout": 1}
    assert (summary["completion_mean_s"], summary["worst_turn_s"]) == (2.0, 2.0)
    assert summary["prompt_tokens_cached"] == 160


def test_nothing_measured_is_none_everywhere() -> None:
    failed = Exchange(error="connection failed", error_kind="connection")
    summary = measure.summarise([replayed("a", [failed])], None)
    for key in ("completion_mean_s", "worst_turn_s", "ttft_p50_s", "tpot_mean_s", "prompt_tokens_cached"):
        assert summary[key] is None
    line = next(line for line in table.result_table(summary).splitlines() if "from cache" in line)
    assert line.split()[-1] == "-"


def test_one_token_replies_have_no_time_a_token() -> None:
    assert measure.summarise([replayed("a", [exchange(completion_tokens=1)])], True)["tpot_mean_s"] is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (0.0, "0"), (12345, "12,345"), (0.012345, "0.0123"), (123.46, "123.5"), (4321.9, "4,322")],
)
def test_figures_have_the_digits_they_deserve(value: float | None, text: str) -> None:
    assert table.figure(value) == text


def test_timeline_splits_queue_from_prefill_only_where_told() -> None:
    result = replayed("a", [exchange(), exchange()])
    result.turns[1].server = {"queue_s": 0.2}
    events = perfetto.chrome_trace([result])["traceEvents"]
    slices = [(e["name"], round(e["ts"] / 1e6, 6), round(e["dur"] / 1e6, 6)) for e in events if e["ph"] == "X"]
    assert slices == [
        ("ttft", 10.0, 0.5),
        ("decode", 10.5, 1.5),
        ("tool", 12.0, 1.0),
        ("queue", 13.0, 0.2),
        ("prefill", 13.2, 0.3),
        ("decode", 13.5, 1.5),
    ]


def test_timeline_is_valid_chrome_trace_json_without_overlap() -> None:
    failed = Exchange(latency_s=1.0, error="HTTP 500", error_kind="http_500")
    results = [replayed("a", [exchange(), exchange()]), replayed("b", [exchange(ttft_s=None), failed])]
    trace = json.loads(json.dumps(perfetto.chrome_trace(results)))
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert names == {1: "a", 2: "b"}
    for row in names:
        spans = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["tid"] == row]
        for event in spans:
            assert set(event) == {"name", "cat", "ph", "pid", "tid", "ts", "dur", "args"}
            assert event["dur"] >= 0
        for before, after in itertools.pairwise(spans):
            assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
    assert [e["name"] for e in trace["traceEvents"] if e["tid"] == 2 and e["ph"] == "X"][-1] == "error"


def write_run(
    folder: Path, name: str, latency_of: Callable[[int, int], float], sessions: int = 20, **changes: Any
) -> report.Run:
    """A result whose turn k of session i took `latency_of(i, k)` seconds; three turns each, no gaps."""
    results = [
        replayed(f"s{i}", [exchange(latency_s=latency_of(i, k)) for k in range(3)], 0.0) for i in range(sessions)
    ]
    result = {
        "format": measure.RESULT_FORMAT,
        "version": measure.RESULT_VERSION,
        **measure.summarise(results, True),
        "options": {"forced": True, "loop": {"concurrency": 4}},
        "provenance": {"trace": {"sha256": "f" * 64}},
        **changes,
    }
    (folder / f"{name}.json").write_text(json.dumps(result))
    return report.load_run(str(folder / f"{name}.json"))


def base_latency(session: int, turn: int) -> float:
    return 1.0 + session + 0.1 * turn


def test_report_finds_a_known_ratio_exactly(tmp_path: Path) -> None:
    base = write_run(tmp_path, "base", base_latency)
    found = report.compare(base, write_run(tmp_path, "faster", lambda i, k: 0.8 * base_latency(i, k)))
    completion, latency, *_ = found.comparisons
    for comparison in (completion, latency):
        assert comparison.ratio == pytest.approx(0.8)
        assert (comparison.low, comparison.high) == (pytest.approx(0.8), pytest.approx(0.8))
    assert (completion.num_pairs, completion.faster, completion.slower) == (20, 20, 0)
    assert (latency.num_pairs, latency.faster) == (60, 60)
    assert found.notes == ()
    assert "0.800" in report.text(found)


def noisy(seed: int, sessions: int) -> tuple[Callable[[int, int], float], float]:
    """Latencies of mean 2 s with noise, and the width that the normal approximation gives the interval of their mean,
    sessions being the units: 2 x 1.96 x sd of session means / sqrt(sessions), relative to the base's 2 s."""
    noise = np.random.default_rng(seed).normal(1.0, 0.2, size=(sessions, 3))
    width = 2 * 1.96 * float(noise.mean(axis=1).std(ddof=1)) / sessions**0.5
    return lambda i, k: 2.0 * float(noise[i, k]), width


def test_report_interval_is_as_wide_as_it_should_be_and_the_seeds(tmp_path: Path) -> None:
    latency_of, width = noisy(5, sessions=40)
    base = write_run(tmp_path, "base", lambda i, k: 2.0, sessions=40)
    run = write_run(tmp_path, "noisy", latency_of, sessions=40)
    first, again, other = (report.compare(base, run, seed) for seed in (1, 1, 2))
    latency = first.comparisons[1]
    assert first.comparisons == again.comparisons
    assert other.comparisons[1].ratio == latency.ratio
    assert other.comparisons[1].low != latency.low
    assert latency.low is not None
    assert latency.high is not None
    assert latency.high - latency.low == pytest.approx(width, rel=0.15)
    assert latency.faster + latency.slower == 120


def test_report_interval_holds_the_truth_about_as_often_as_it_says(tmp_path: Path) -> None:
    base = write_run(tmp_path, "base", lambda i, k: 2.0, sessions=25)
    hits = 0
    for seed in range(30):
        found = report.compare(base, write_run(tmp_path, "noisy", noisy(seed, 25)[0], sessions=25)).comparisons[1]
        hits += found.low is not None and found.high is not None and found.low < 1.0 < found.high
    assert hits >= 26  # of 30 at 95%: fewer has a chance below 2%


def test_report_of_a_run_with_itself_is_one(tmp_path: Path) -> None:
    base = write_run(tmp_path, "base", base_latency)
    for comparison in report.compare(base, base).comparisons:
        assert (comparison.ratio, comparison.faster, comparison.slower) == (1.0, 0, 0)


def test_report_notes_what_spoils_a_comparison(tmp_path: Path) -> None:
    base = write_run(tmp_path, "base", base_latency, sessions=5)
    changed = {"options": {"forced": False, "loop": {"concurrency": 8}}, "provenance": {"trace": {"sha256": "e"}}}
    run = write_run(tmp_path, "run", base_latency, sessions=4, errors=3, forced_mismatches=2, **changed)
    assert report.compare(base, run).notes == (
        "1 sessions of base have no complete partner and are left out",
        "run had 3 failed turns",
        "run: 2 forced replies were not as recorded",
        "4 session pairs are too few for the interval to be trusted",
        "the runs differ in their settings: forced, loop",
        "the runs come from different trace files; sessions are paired by id only",
    )


def test_runs_without_a_common_session_cannot_be_compared(tmp_path: Path) -> None:
    base = write_run(tmp_path, "base", base_latency, sessions=2)
    other = write_run(tmp_path, "other", base_latency, sessions=2)
    for sample in other.result["samples"]["sessions"]:
        sample["turns"] = 99
    with pytest.raises(AgentInferError, match="base and other share no session"):
        report.compare(base, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ("[]", "expected format"), ('{"format": "agentinfer.replay", "version": 2}', "version 1")],
)
def test_files_that_are_no_result_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(AgentInferError, match=message):
        report.load_run(str(tmp_path / "x.json"))


@pytest.mark.parametrize(("sessions", "rows"), [(3, 3), (100, 34)], ids=["few", "thinned"])
def test_picture_is_xml_with_a_row_a_session_inside_its_frame(tmp_path: Path, sessions: int, rows: int) -> None:
    base = write_run(tmp_path, "base <1>", base_latency, sessions=sessions)
    runs = [write_run(tmp_path, f"run & {n}", lambda i, k: 0.9 * base_latency(i, k), sessions=sessions) for n in "ab"]
    root = ElementTree.fromstring(picture.draw([report.compare(base, run) for run in runs]))
    namespace = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{namespace}text")]
    assert "base <1>" in texts
    assert "run & a" in texts
    assert sum(bool(text) and text.startswith("s") and text[1:].isdigit() for text in texts if text) == rows
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for circle in root.iter(f"{namespace}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width
        assert 0 <= float(circle.attrib["cy"]) <= height


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
        (0.83, 1.12, [0.85, 0.9, 0.95, 1.0, 1.05, 1.1]),
        (0.0, 0.004, [0.0, 0.001, 0.002, 0.003, 0.004]),
        (0.0, 52000.0, [0.0, 10000.0, 20000.0, 30000.0, 40000.0, 50000.0]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_long_ids_keep_their_end() -> None:
    assert shorten("deepseek_chat_dev/marshmallow-code__marshmallow-1343", 20) == "deepse…shmallow-1343"
    assert shorten("short", 20) == "short"
