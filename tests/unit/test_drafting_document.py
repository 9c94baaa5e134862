"""What the docs say about drafting is what the result files say."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks.drafting import document
from benchmarks.drafting.drafter import BenchmarkError
from benchmarks.drafting.picture import draw
from benchmarks.measurements import page


def row(drafter: str, tokens_per_step: float, **extra: Any) -> dict[str, Any]:
    new = {
        "session_tokens_per_step": {"worst": 1.5, "best": 5.25},
        "accepted_of_drafted": 0.23,
        "cpu_us_per_token": 2.24,
    }
    return {
        "drafter": drafter,
        "tokens_per_step": tokens_per_step,
        "drafted_per_step": 7.26,
        "all_in_us_per_token": 3.14,
        "peak_rss_mb": 88.4,
        "new_tasks": new,
        "repeated_tasks": {"tokens_per_step": 4.38},
        "calibration": None,
        "command": f"measure {drafter}",
        **extra,
    }


CALIBRATION = {
    "mean_gap": 0.0123,
    "expected_tokens_per_step": 3.25,
    "nodes": [{"drafted": 900, "expected": 0.05, "accepted": 0.04}, {"drafted": 100, "expected": 0.9, "accepted": 0.8}],
    "steps": [
        {"steps": 30, "expected_tokens": 1.5, "tokens": 1.25},
        {"steps": 10, "expected_tokens": 8.5, "tokens": 9.25},
    ],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    ours = row("agent_sam", 3.47, calibration=CALIBRATION, conditions="a quiet machine")
    worse = row("prompt_lookup", 1.94, repeated_tasks=None)
    (tmp_path / "draft_quality_airline.json").write_text(json.dumps([ours, worse]))
    (tmp_path / "draft_quality_airline_leave_one_out.json").write_text(json.dumps([row("agent_sam", 3.77)]))
    return tmp_path


def test_page_has_a_row_a_trace_and_drafter(results: Path) -> None:
    text = page(results)
    assert (
        "| airline | `agent_sam` | 3.47 | 4.38 | 3.77 | 1.50 to 5.25 | 7.3 | 23% | 3.1 | 2.2 | 88 |\n"
        "| airline | `prompt_lookup` | 1.94 | – | – | 1.50 to 5.25 | 7.3 | 23% | 3.1 | 2.2 | 88 |\n"
    ) in text
    assert "- `measure agent_sam` (a quiet machine)\n- `measure prompt_lookup`\n- `measure agent_sam`\n" in text


def test_page_is_silent_where_nothing_was_measured(tmp_path: Path) -> None:
    assert "Drafting" not in page(tmp_path)


def test_calibration_section_sums_up_our_drafter(results: Path) -> None:
    made = document.section(document.calibrations(results))
    assert "| airline | 1,000 | 0.012 | 3.25 | 3.25 |" in made  # (30 * 1.25 + 10 * 9.25) / 40 emitted


def test_section_takes_the_place_between_the_marks_only() -> None:
    text = f"before\n{document.BEGIN}old\n{document.END}after\n"
    assert document.with_section(text, "new\n") == f"before\n{document.BEGIN}new\n{document.END}after\n"
    with pytest.raises(BenchmarkError, match="expected the marks"):
        document.with_section("no marks", "new\n")


def test_picture_has_a_dot_a_bin_where_its_figures_put_it() -> None:
    svg = "{http://www.w3.org/2000/svg}"
    root = ET.fromstring(draw({"airline": CALIBRATION}))
    dots = [dot for dot in root.iter(f"{svg}circle") if dot.find(f"{svg}title") is not None]
    assert len(dots) == 4
    few, many = dots[1], dots[0]
    assert float(few.get("r", "0")) < float(many.get("r", "0"))
    assert float(few.get("cx", "0")) > float(many.get("cx", "0"))  # the more was expected, the further right
    assert float(few.get("cy", "0")) < float(many.get("cy", "0"))  # the more was accepted, the higher
    titles = [dot.findtext(f"{svg}title") for dot in dots]
    assert titles[3] == "airline: expected 8.500, seen 9.250 (10)"


def test_committed_docs_are_made_from_the_committed_results() -> None:
    found = document.calibrations()
    text = document.DOCUMENT.read_text(encoding="utf-8")
    run = "run: python -m benchmarks.drafting.document"
    assert text == document.with_section(text, document.section(found)), run
    assert document.PICTURE.read_text(encoding="utf-8") == draw(found), run
