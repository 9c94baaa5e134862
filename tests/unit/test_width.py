"""The width of a step: allowed widths, bad input, state handed from rank to rank."""

from __future__ import annotations

import numpy as np
import pytest

from agentinfer.errors import ConfigError
from agentinfer.spec_sam.width import WidthController


def draft(*rows: list[float], max_width: int = 16) -> np.ndarray:
    batch = np.zeros((len(rows), max_width), np.float32)
    for row, probabilities in zip(batch, rows, strict=True):
        row[: len(probabilities) + 1] = [1.0, *probabilities]
    return batch


def lens(*context_lens: int) -> np.ndarray:
    return np.array(context_lens, np.int64)


def test_without_drafts_a_step_is_plain():
    assert WidthController().choose(draft([], []), lens(100, 200)) == 1


def test_certain_drafts_are_verified_before_anything_was_measured():
    assert WidthController().choose(draft([1.0] * 15), lens(100)) == 16


@pytest.mark.parametrize("widths", [(), (2, 4), (1, 4, 4), (1, 8, 4)], ids=["none", "no plain step", "twice", "order"])
def test_widths_that_make_no_sense_are_refused(widths):
    with pytest.raises(ConfigError, match="ascending ones starting with 1"):
        WidthController(widths)


def test_a_probe_budget_that_is_not_a_share_is_refused():
    with pytest.raises(ConfigError, match="share of the time"):
        WidthController(probe_budget=1.5)


def test_a_measured_width_must_be_an_allowed_one():
    with pytest.raises(ValueError, match="width 5"):
        WidthController().observe(1, 5, 100, 0.02, 3)
