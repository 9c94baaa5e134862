"""Whatever a controller has seen: an allowed width, the same on every rank, never narrower for more evidence."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agentinfer.spec_sam.acceptance import AcceptanceModel
from agentinfer.spec_sam.step_time import StepTimeModel
from agentinfer.spec_sam.width import WidthController

WIDTHS = (1, 2, 3, 4, 6, 8)
MAX_WIDTH = 8

probabilities = st.floats(0.0, 1.0, width=32)
rows = st.lists(probabilities, max_size=MAX_WIDTH - 1).map(lambda row: sorted(row, reverse=True))
full_rows = st.lists(probabilities, min_size=MAX_WIDTH - 1, max_size=MAX_WIDTH - 1).map(lambda row: sorted(row)[::-1])
drafts = st.lists(rows | full_rows, min_size=1, max_size=3)
steps = st.tuples(
    st.integers(1, 9),  # batch
    st.sampled_from(WIDTHS),
    st.integers(0, 100_000),  # context tokens
    st.floats(1e-4, 1.0),  # seconds
    st.integers(0, 30),  # tokens out
    st.floats(0.0, 0.02),  # seconds of drafting; 0 for a step without
    rows,  # stated by the draft
    st.integers(0, MAX_WIDTH),  # accepted
)
row_costs = st.lists(st.floats(0.0, 0.5), min_size=len(WIDTHS) - 1, max_size=len(WIDTHS) - 1)
any_steps = st.lists(steps, max_size=40)


@st.composite
def histories(draw: st.DrawFn) -> list:
    """Warm-up steps of every width, so that all may be chosen, then steps of any kind."""
    warm_up = []
    seconds = 0.02
    for width, more in zip(WIDTHS, [0.0, *draw(row_costs)], strict=True):
        seconds += 0.02 * more
        warm_up += [(batch_size, width, 500, seconds, 0, 0.0, [], 0) for batch_size in (1, 2) for _ in range(3)]
    return warm_up + draw(st.just([]) | any_steps)


def as_array(batch: list[list[float]]) -> np.ndarray:
    paths = np.zeros((len(batch), MAX_WIDTH), np.float32)
    paths[:, 0] = 1.0
    for row, stated in zip(paths, batch, strict=True):
        row[1 : len(stated) + 1] = stated
    return paths


def live(controller: WidthController, history: list) -> WidthController:
    for batch_size, width, context, seconds, tokens, draft_s, stated, accepted in history:
        if draft_s:
            controller.observe_draft(batch_size, draft_s)
        controller.observe(batch_size, width, context, seconds, tokens)
        paths = as_array([stated])
        controller.observe_acceptance(paths, np.arange(MAX_WIDTH)[None, :] <= accepted)
    return controller


def choose(state: np.ndarray, paths: np.ndarray, context: int = 500) -> int:
    """What a controller in that state chooses first."""
    controller = WidthController(WIDTHS)
    controller.import_state(state)
    return controller.choose(paths, np.full(len(paths), context, np.int64))


@settings(max_examples=150, deadline=None)
@given(histories(), drafts)
def test_the_width_is_an_allowed_one_that_the_drafts_fill(history, batch):
    paths = as_array(batch)
    width = choose(live(WidthController(WIDTHS), history).export_state(), paths)
    longest = 1 + int((paths[:, 1:] > 0).sum(axis=1).max())
    assert width in WIDTHS
    assert width <= min(allowed for allowed in WIDTHS if allowed >= longest)


@settings(max_examples=150, deadline=None)
@given(histories(), drafts, st.data())
def test_more_evidence_never_narrows_the_width(history, batch, data):
    paths = as_array(batch)
    num_raised = data.draw(st.integers(1, MAX_WIDTH - 1))  # the first few nodes of each draft, or all
    to = data.draw(st.lists(full_rows, min_size=len(batch), max_size=len(batch)))
    more = np.maximum(paths, as_array([row[:num_raised] for row in to]))
    state = live(WidthController(WIDTHS), history).export_state()
    assert choose(state, more) >= choose(state, paths)


@settings(max_examples=100, deadline=None)
@given(histories(), any_steps, drafts)
def test_ranks_that_are_told_the_same_choose_the_same(before, after, batch):
    leader, follower = live(WidthController(WIDTHS), before), WidthController(WIDTHS)
    follower.import_state(leader.export_state())
    paths, context_lens = as_array(batch), np.full(len(batch), 500, np.int64)
    for step in [None, *after]:
        for controller in (leader, follower):
            live(controller, [step] if step else [])
        assert leader.should_draft(len(batch)) == follower.should_draft(len(batch))
        assert leader.choose(paths, context_lens) == follower.choose(paths, context_lens)
    assert np.array_equal(leader.export_state(), follower.export_state())


@settings(max_examples=150, deadline=None)
@given(histories(), st.integers(1, 64), st.integers(0, 200_000))
def test_step_times_never_fall_with_width_batch_or_context(history, batch_size, context):
    model = StepTimeModel(WIDTHS)
    for step in history:
        model.observe(*step[:4])
    seconds = np.array(model.seconds(batch_size, context))
    tolerance = 1.0 + 1e-9
    assert (seconds > 0).all()
    assert (seconds[:-1] <= seconds[1:] * tolerance).all()
    assert (seconds <= np.array(model.seconds(batch_size + 1, context)) * tolerance).all()
    assert (seconds <= np.array(model.seconds(batch_size, context + 1000)) * tolerance).all()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(rows, st.integers(0, MAX_WIDTH)), max_size=60))
def test_corrected_probabilities_keep_their_order(outcomes):
    model = AcceptanceModel()
    for stated, accepted in outcomes:
        model.observe(as_array([stated]), np.arange(MAX_WIDTH)[None, :] <= accepted)
    corrected = model.correct(np.linspace(0, 1, 201, dtype=np.float32))
    assert (np.diff(corrected) >= 0).all()
    assert corrected[0] == 0.0
    assert corrected[-1] <= 1.0
