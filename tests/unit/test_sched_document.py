"""What the docs say about simulated scheduling is what the result files say, and the settings' sweep misses none."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from agentinfer.commands.simulate import Workload
from agentinfer.radix_ext.simulator import SharedSegment, SimSession, SimTurn
from benchmarks import sched_document, sched_sim, sched_tuning
from benchmarks.sched_picture import SHOWN, draw


def row(policy: str, live: int, rate: float, **changed: Any) -> dict[str, Any]:
    figures = dict.fromkeys(sched_sim.KEPT, 0.5)
    return {**figures, "policy": policy, "live_sessions": live, "sessions_per_hour": rate, "max_wait_s": None} | changed


def result() -> dict[str, Any]:
    by_policy = [row(name, live, 40.0 - n, kv_tokens=1000) for live in (8, 32) for n, name in enumerate(SHOWN)]
    orders = [row("agent", 32, 30.0 + s, seed=s) for s in (1, 2, 3)]
    orders += [row(name, 32, 10.0, seed=s) for name in ("fcfs", "lpm") for s in (1, 2, 3)]
    frontier = [row("agent", 32, rate, max_wait_s=wait, worst_wait_s=wait) for wait, rate in ((60, 50.0), (1e6, 60.0))]
    return {
        "swe_dev": by_policy,
        "swe_dev_host": [each | {"host_kv_tokens": 2000} for each in by_policy],
        "swe_dev_orders": orders,
        "frontier": frontier,
        "frontier_host": [each | {"sessions_per_hour": 70.0} for each in frontier],
        "coding_timing_orders": orders,
        "coding_timing": [row("agent", 32, 9.0, kv_tokens=3000, sessions=200)],
        "command": "measure",
    }


TUNING = {
    "defaults": {"join_share": 0.9, "max_wait_s": None},
    "rows": [
        {"case": "a", "changed": {}, "sessions_per_hour": 50.0, "worst_turn_s": 200.0},
        {"case": "a", "changed": {"join_share": 1.0}, "sessions_per_hour": 25.0, "worst_turn_s": 300.0},
        {"case": "a", "changed": {"max_wait_s": 60.0}, "sessions_per_hour": 50.0, "worst_turn_s": 100.0},
    ],
    "command": "tune",
}


def test_section_has_every_policy_ratio_and_setting() -> None:
    text = sched_document.section(result(), TUNING)
    assert "| 32 | `fcfs` | 39.0 | 0 | 0 | 0 | 50.0% | 50.0% |" in text
    assert "completes 3.20 (3.10 to 3.30) times the sessions of `fcfs`" in text  # 31, 32, 33 over 10
    assert "takes 1.00 (1.00 to 1.00) and" in text
    assert "| 60 | 50.0 | 60 |" in text
    assert "| never | 60.0 | 1,000,000 |" in text
    assert "| `join_share` | 0.9 | 1 | 50 / 150 |" in text
    assert "| `max_wait_s` | own | 60 | 100 / 50 |" in text


def test_section_takes_the_place_between_the_marks_only() -> None:
    text = f"before\n{sched_document.BEGIN}old\n{sched_document.END}after\n"
    expected = f"before\n{sched_document.BEGIN}new\n{sched_document.END}after\n"
    assert sched_document.with_section(text, "new\n") == expected
    with pytest.raises(ValueError, match="expected the marks"):
        sched_document.with_section("no marks", "new\n")


def test_picture_has_a_dot_a_row_higher_with_more_sessions_an_hour() -> None:
    svg = "{http://www.w3.org/2000/svg}"
    dots = {}
    for dot in ET.fromstring(draw(result())).iter(f"{svg}circle"):
        title = dot.findtext(f"{svg}title")
        if title:
            dots.setdefault(title, []).append(float(dot.get("cy", "0")))
    assert len([y for ys in dots.values() for y in ys]) == 2 * len(SHOWN) + (len(SHOWN) - 1) + 2 + 2
    heights = {title.partition(":")[0]: ys[0] for title, ys in dots.items()}
    assert heights["agent, bound 60 s"] < heights["agent"] < heights["fcfs"] < heights["spf"]


def test_twice_as_many_sessions_as_fit() -> None:
    """Contexts of 100 tokens for 5 s and of 200 for 15 s: 175 on average, for 8 sessions 1400, half of it 700."""
    turns = (SimTurn(60, 40, 10, 0.0), SimTurn(110, 90, 1, 10.0))
    sessions = [SimSession("a", turns, (SharedSegment("s", 60),))]
    assert sched_sim.half_of_what_they_hold(sessions, 8) == 700


def test_every_setting_is_swept() -> None:
    sched_tuning.check_swept()


def test_rows_come_from_the_simulator() -> None:
    session = SimSession("a", (SimTurn(0, 50, 5, 1.0), SimTurn(55, 5, 5)))
    workload = Workload("made", "0" * 64, (session,), "as made")
    rows = sched_sim.Runner(workload).by_policy((2,), 10_000, 0, 3)
    assert [each["policy"] for each in rows] == sched_sim.POLICIES.split(",")
    assert {each["sessions"] for each in rows} == {3}
    assert {each["hit_rate"] for each in rows} == {55 / 110}


def test_committed_docs_are_made_from_the_committed_results() -> None:
    found, tuning = sched_document.load("sched_sim.json"), sched_document.load("sched_tuning.json")
    text = sched_document.DOCUMENT.read_text(encoding="utf-8")
    run = "run: python -m benchmarks.sched_document"
    assert text == sched_document.with_section(text, sched_document.section(found, tuning)), run
    assert sched_document.PICTURE.read_text(encoding="utf-8") == draw(found), run


@pytest.mark.parametrize("name", ["sched_sim.json", "sched_tuning.json"])
def test_result_files_name_no_folder_of_the_machine(name: str) -> None:
    text = (Path(sched_document.RESULTS) / name).read_text(encoding="utf-8")
    assert '"/' not in text
    assert " /" not in text
