"""Choosing widths: allowed ones, measured ones, what drafting costs, state handed from rank to rank."""

from __future__ import annotations

import numpy as np
import pytest

from agentinfer.errors import ConfigError
from agentinfer.spec_sam.width import DEFAULT_WIDTHS, WidthController

PLAIN_S = 0.02


def draft(*rows: list[float], max_width: int = 16) -> np.ndarray:
    batch = np.zeros((len(rows), max_width), np.float32)
    for row, probabilities in zip(batch, rows, strict=True):
        row[: len(probabilities) + 1] = [1.0, *probabilities]
    return batch


def lens(*context_lens: int) -> np.ndarray:
    return np.array(context_lens, np.int64)


def warmed_up(row_s: float = 0.001, batch_size: int = 1) -> WidthController:
    """Every width was measured: a row beyond the plain step's takes `row_s`."""
    controller = WidthController()
    for width in DEFAULT_WIDTHS * 8:
        seconds = PLAIN_S + row_s * batch_size * (width - 1)
        controller.observe(batch_size, width, 100 * batch_size, seconds, tokens_out=0)
    return controller


CERTAIN = draft([1.0] * 15)


def test_without_drafts_a_step_is_plain():
    assert warmed_up(batch_size=2).choose(draft([], []), lens(100, 200)) == 1


def test_the_first_step_is_plain_since_nothing_can_be_compared_yet():
    assert WidthController().choose(CERTAIN, lens(100)) == 1


def test_wider_steps_are_tried_one_after_the_other():
    controller = WidthController()
    tried = []
    for _ in DEFAULT_WIDTHS:
        tried.append(controller.choose(CERTAIN, lens(100)))
        controller.observe(1, tried[-1], 100, PLAIN_S, tokens_out=tried[-1])
    assert tried == list(DEFAULT_WIDTHS)


@pytest.mark.parametrize(
    ("row_s", "width"), [(0.0, 16), (0.001, 16), (0.03, 1)], ids=["rows free", "rows cheap", "rows dear"]
)
def test_measured_times_decide_what_certain_drafts_are_worth(row_s, width):
    assert warmed_up(row_s).choose(CERTAIN, lens(100)) == width


def test_the_width_ends_where_rows_cost_more_than_they_bring():
    controller = warmed_up(row_s=0.25 * PLAIN_S)
    assert controller.choose(draft([0.9, 0.8, 0.7, 0.01, 0.01, 0.01, 0.01]), lens(100)) == 4


def test_a_step_is_no_wider_than_the_array():
    assert warmed_up(0.0).choose(draft([1.0] * 4, max_width=5), lens(100)) == 4


def test_a_longer_context_makes_wide_steps_dearer_where_rows_read_it_again():
    controller = WidthController()
    for context in (100, 5000) * 3:
        for width in [width for width in DEFAULT_WIDTHS for _ in range(3)]:
            controller.observe(1, width, context, PLAIN_S + 4e-6 * context * width, tokens_out=0)
    fair = draft([0.5] * 3)
    assert controller.choose(fair, lens(100)) > controller.choose(fair, lens(8000)) == 1


@pytest.mark.parametrize("widths", [(), (2, 4), (1, 4, 4), (1, 8, 4)], ids=["none", "no plain step", "twice", "order"])
def test_widths_that_make_no_sense_are_refused(widths):
    with pytest.raises(ConfigError, match="ascending ones starting with 1"):
        WidthController(widths)


@pytest.mark.parametrize("allowance", [0.0, 1.5])
def test_an_allowance_that_is_not_a_share_is_refused(allowance):
    with pytest.raises(ConfigError, match="share of the time"):
        WidthController(allowance=allowance)


def test_a_measured_width_must_be_an_allowed_one():
    with pytest.raises(ValueError, match="width 5"):
        WidthController().observe(1, 5, 100, 0.02, 3)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_measured_time_must_be_a_time(seconds):
    with pytest.raises(ValueError, match="measure it again"):
        WidthController().observe(1, 1, 100, seconds, 1)


def test_each_draft_has_a_context_length():
    with pytest.raises(ValueError, match="expected one each"):
        WidthController().choose(draft([0.5], [0.5]), lens(100))


def test_outcomes_have_the_shape_of_their_drafts():
    with pytest.raises(ValueError, match="outcomes of shape"):
        WidthController().observe_acceptance(draft([0.5]), np.ones((1, 4), bool))


def test_a_controller_of_plain_steps_never_drafts():
    controller = WidthController([1])
    assert not controller.should_draft(1)
    assert controller.choose(CERTAIN, lens(100)) == 1


def test_speedup_counts_real_steps_against_plain_ones():
    controller = warmed_up(row_s=0.25 * PLAIN_S)
    assert controller.speedup == 1.0
    for _ in range(50):
        controller.observe(1, 4, 100, 1.75 * PLAIN_S, tokens_out=3)
    assert controller.speedup == pytest.approx(3 / 1.75, rel=0.05)


def drafts_in(controller: WidthController, steps: int, draft_s: float) -> int:
    """Plain steps, drafting in vain whenever the controller asks for it."""
    drafted = 0
    for _ in range(steps):
        if controller.should_draft(1):
            controller.observe_draft(1, draft_s)
            drafted += 1
        controller.observe(1, 1, 100, PLAIN_S, tokens_out=1)
    return drafted


def test_drafting_in_vain_costs_the_allowance_and_no_more():
    controller = warmed_up()
    drafts_in(controller, 200, draft_s=0.1 * PLAIN_S)  # the capital at the start
    assert drafts_in(controller, 1000, draft_s=0.1 * PLAIN_S) * 0.1 <= 0.011 * 1000
    assert drafts_in(controller, 1000, draft_s=0.1 * PLAIN_S) > 50, "or it would never see that text begins to repeat"


def test_drafting_that_costs_next_to_nothing_never_stops():
    assert drafts_in(warmed_up(), 1000, draft_s=0.001 * PLAIN_S) == 1000


def test_one_slow_draft_does_not_stop_drafting():
    controller = warmed_up()
    controller.observe_draft(1, 1e-5)
    controller.observe_draft(1, 10.0)
    assert controller.should_draft(1)


def test_state_is_taken_over_whole():
    leader, follower = warmed_up(), WidthController()
    rng = np.random.default_rng(5)
    for number in range(300):
        if number == 100:
            follower.import_state(leader.export_state())
        paths = np.sort(rng.random((2, 16)).astype(np.float32) ** 3)[:, ::-1]
        drafts = [controller.should_draft(2) for controller in (leader, follower)]
        widths = [controller.choose(paths, lens(100, 200)) for controller in (leader, follower)]
        if number >= 100:
            assert drafts[0] == drafts[1]
            assert widths[0] == widths[1]
        accepted = rng.random((2, widths[0])) < paths[:, : widths[0]]
        for controller in (leader, follower):
            controller.observe_draft(2, 1e-4 * (1 + number % 3))
            controller.observe(2, widths[0], 300, PLAIN_S * (1 + 0.05 * widths[0] + 0.1 * (number % 7)), 2 + number % 5)
            controller.observe_acceptance(paths[:, : widths[0]], accepted)
    assert np.array_equal(leader.export_state(), follower.export_state())


def test_state_of_other_widths_is_refused():
    with pytest.raises(ValueError, match="other widths"):
        WidthController((1, 2, 4)).import_state(WidthController((1, 2, 8)).export_state())
    with pytest.raises(ValueError, match="other widths"):
        WidthController((1, 2)).import_state(WidthController((1, 2, 8)).export_state())
