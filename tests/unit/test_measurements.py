"""The page of measurements is what its files say."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measurements import page

ROOT = Path(__file__).parents[2]


def test_page_is_made_from_the_result_files() -> None:
    committed = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    assert committed == page(), "run: python -m benchmarks.measurements > docs/measurements.md"


def test_page_shows_where_we_lose() -> None:
    text = page()
    assert "| prefill 128 | float32 |" in text
