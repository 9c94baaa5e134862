"""What width control learns from: step times with accidents in them, and what became of drafts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from agentinfer.spec_sam.acceptance import AcceptanceModel
from agentinfer.spec_sam.step_time import StepTimeModel

WIDTHS = (1, 2, 4, 8, 16)


def linear_s(batch_size: int, width: int, context: int) -> float:
    return 0.02 + 0.0017 * (batch_size * width - 1) + 4e-7 * context


def tiled_s(batch_size: int, width: int, context: int) -> float:
    """Rows are computed eight at a time."""
    return 0.01 + 0.006 * -(-batch_size * width // 8) + 1e-7 * context


def trained(step_s, batches=(1, 4), rounds=12) -> StepTimeModel:
    model = StepTimeModel(WIDTHS)
    for number in range(rounds):
        for batch_size in batches:
            for width in WIDTHS:
                context = 500 * batch_size * (1 + number % 4)
                model.observe(batch_size, width, context, step_s(batch_size, width, context))
    return model


def errors(model: StepTimeModel, step_s, batch_size: int, context: int) -> np.ndarray:
    expected = np.array([step_s(batch_size, width, context) for width in WIDTHS])
    return np.abs(np.array(model.seconds(batch_size, context)) / expected - 1.0)


@pytest.mark.parametrize("step_s", [linear_s, tiled_s])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_times_of_measured_steps_are_learned(step_s, batch_size):
    assert errors(trained(step_s), step_s, batch_size, 1000 * batch_size).max() < 0.06


def test_times_of_other_batches_follow_from_the_rows_they_share():
    assert errors(trained(linear_s), linear_s, 2, 2000).max() < 0.1


def test_before_any_step_rows_are_expected_to_cost():
    seconds = StepTimeModel(WIDTHS).seconds(1, 0)
    assert all(narrow < wide for narrow, wide in pairwise(seconds))


def test_one_step_sets_the_scale_of_all():
    model = StepTimeModel(WIDTHS)
    model.observe(1, 1, 100, 0.004)
    assert model.seconds(1, 100)[0] == pytest.approx(0.004, rel=0.01)
    assert model.seconds(1, 100)[-1] < 0.02


def test_an_accident_changes_nothing():
    model = trained(linear_s)
    before = model.seconds(1, 1000)
    assert not model.observe(1, 4, 1000, 10 * linear_s(1, 4, 1000))
    assert model.seconds(1, 1000) == before


def test_a_slow_first_step_is_forgotten():
    model = StepTimeModel(WIDTHS)
    model.observe(1, 1, 500, 1.0)
    for _ in range(40):
        for width in WIDTHS:
            model.observe(1, width, 500, linear_s(1, width, 500))
    assert errors(model, linear_s, 1, 500).max() < 0.06


def test_a_machine_that_has_become_slower_is_followed():
    model = trained(linear_s)
    for _ in range(60):
        for width in WIDTHS:
            model.observe(1, width, 1000, 3 * linear_s(1, width, 1000))
    slow = [3 * linear_s(1, width, 1000) for width in WIDTHS]
    assert model.seconds(1, 1000) == pytest.approx(slow, rel=0.25)


def test_a_state_of_another_length_is_refused():
    with pytest.raises(ValueError, match="state of shape"):
        StepTimeModel(WIDTHS).restore(StepTimeModel((1, 2)).state())
    with pytest.raises(ValueError, match="state of shape"):
        AcceptanceModel().restore(np.zeros(3))


def outcomes(stated: float, accepted: float, width: int = 4, rows: int = 100) -> tuple[np.ndarray, np.ndarray]:
    paths = np.full((rows, width), stated, np.float32)
    paths[:, 0] = 1.0
    is_accepted = np.zeros((rows, width), bool)
    is_accepted[: round(accepted * rows)] = True
    return paths, is_accepted


def corrected(model: AcceptanceModel, stated: float) -> float:
    return float(model.correct(np.array([[stated]], np.float32))[0, 0])


@pytest.mark.parametrize("stated", [0.0, 0.03, 0.33, 0.9, 1.0])
def test_the_drafter_is_believed_until_there_are_outcomes(stated):
    assert corrected(AcceptanceModel(), stated) == pytest.approx(stated, abs=1e-6)


@pytest.mark.parametrize(("stated", "accepted"), [(0.85, 0.3), (0.25, 0.6), (0.45, 0.45)])
def test_outcomes_outweigh_the_drafter(stated, accepted):
    model = AcceptanceModel()
    for _ in range(3):
        model.observe(*outcomes(stated, accepted))
    assert corrected(model, stated) == pytest.approx(accepted, abs=0.03)


def test_what_a_probability_came_to_bounds_the_ones_beside_it():
    model = AcceptanceModel()
    model.observe(*outcomes(0.75, 0.1))
    assert corrected(model, 0.55) <= corrected(model, 0.75) < 0.4


def test_old_outcomes_fade():
    model = AcceptanceModel()
    for _ in range(100):
        model.observe(*outcomes(0.85, 0.1))
    for _ in range(1000):
        model.observe(*outcomes(0.85, 0.8))
    assert corrected(model, 0.85) == pytest.approx(0.8, abs=0.03)


def test_padding_and_roots_are_no_outcomes():
    model, untouched = AcceptanceModel(), AcceptanceModel()
    paths = np.zeros((50, 4), np.float32)
    paths[:, 0] = 1.0
    accepted = np.zeros((50, 4), bool)
    accepted[:, 0] = True
    model.observe(paths, accepted)
    grid = np.linspace(0, 1, 50, dtype=np.float32)
    assert np.array_equal(model.correct(grid), untouched.correct(grid))
