"""The pair's state machine under every verdict: against the paper's prose run as loops, and by its invariants.

All sequences of eight verdicts are taken, under settings that reach each branch; longer ones come from Hypothesis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentinfer.collab_lang.controller import (
    Model,
    Phase,
    Reason,
    State,
    Verdict,
    after_step,
    burst_budget,
    opening,
)
from agentinfer.collab_lang.settings import CollabSettings

_LENGTH = 8
_PAPER = CollabSettings(max_steps=None)
_SETTINGS = {
    "defaults": _PAPER,
    "no_warm_up": CollabSettings(warm_up_steps=0, max_steps=None),
    "constant_budget": CollabSettings(warm_up_steps=1, burst_first=3, burst_growth=0, burst_max=3, max_steps=None),
    "first_miss_escalates": CollabSettings(
        warm_up_steps=1, burst_first=1, burst_growth=1, burst_max=3, missing_limit=1, max_steps=None
    ),
    "cap_is_no_multiple": CollabSettings(
        warm_up_steps=0, burst_first=1, burst_growth=3, burst_max=2, missing_limit=2, max_steps=None
    ),
    "five_steps": CollabSettings(warm_up_steps=1, max_steps=5),
}

any_settings = st.builds(
    lambda first, above, **rest: CollabSettings(burst_first=first, burst_max=first + above, **rest),
    first=st.integers(1, 4),
    above=st.integers(0, 6),
    warm_up_steps=st.integers(0, 4),
    burst_growth=st.integers(0, 4),
    missing_limit=st.integers(1, 4),
    max_steps=st.none() | st.integers(1, 60),
)
verdict_lists = st.lists(st.sampled_from(Verdict), max_size=80)


def speakers_in_prose(verdicts: Sequence[Verdict], settings: CollabSettings) -> list[Model]:
    """Who speaks in each step that a verdict is about, by loops where the machine has states."""
    said: list[Model] = []
    feed = iter(verdicts)

    def step(model: Model) -> Verdict:
        verdict = next(feed)
        said.append(model)
        return verdict

    try:
        for _ in range(settings.warm_up_steps):
            step(Model.LARGE)
        failed_bursts = 0
        while True:
            missing = 0
            while missing < settings.missing_limit:
                verdict = step(Model.SMALL)
                if verdict is Verdict.NO_PROGRESS:
                    break
                missing = missing + 1 if verdict is Verdict.MISSING else 0
                failed_bursts = 0 if verdict is Verdict.PROGRESS else failed_bursts
            budget = min(settings.burst_first + failed_bursts * settings.burst_growth, settings.burst_max)
            failed_bursts += 1
            for _ in range(budget):
                if step(Model.LARGE) is Verdict.PROGRESS:
                    failed_bursts = 0
                    break
    except StopIteration:
        return said if settings.max_steps is None else said[: settings.max_steps]


def states(verdicts: Sequence[Verdict], settings: CollabSettings) -> Iterator[tuple[State, Verdict, State]]:
    """Each step: the state it was taken in, its verdict, the state it led to. Ends where the trajectory does."""
    state = opening(settings)
    for verdict in verdicts:
        if state.is_over:
            return
        before, state = state, after_step(state, verdict, settings)
        yield before, verdict, state


def check_step(before: State, verdict: Verdict, after: State, settings: CollabSettings) -> None:
    """What holds of any step, whatever came before it."""
    assert after.steps == before.steps + 1
    assert settings.burst_first <= burst_budget(after, settings) <= settings.burst_max
    if after.is_over:
        assert after.steps == settings.max_steps
        assert after.reason is Reason.STEPS_SPENT
        return
    assert after.model is (Model.SMALL if after.phase is Phase.SMALL else Model.LARGE)
    if before.phase is Phase.WARM_UP:
        is_done = after.steps == settings.warm_up_steps
        assert after.reason is (Reason.WARM_UP_DONE if is_done else Reason.WARM_UP)
        assert after.phase is (Phase.SMALL if is_done else Phase.WARM_UP)
    elif verdict is Verdict.PROGRESS:
        assert after.model is Model.SMALL
        assert after.reason is (Reason.PROGRESS if before.phase is Phase.SMALL else Reason.RECOVERED)
        assert burst_budget(after, settings) == settings.burst_first, "progress gives back the first budget"
    elif before.phase is Phase.SMALL:
        expected = (
            {Reason.NO_PROGRESS} if verdict is Verdict.NO_PROGRESS else {Reason.NO_VERDICT, Reason.VERDICTS_MISSING}
        )
        assert after.reason in expected
        assert (after.phase is Phase.SMALL) == (after.reason is Reason.NO_VERDICT)
        assert burst_budget(after, settings) == burst_budget(before, settings)
    else:
        assert after.reason in (Reason.IN_BURST, Reason.BUDGET_SPENT)
        assert (after.phase is Phase.BURST) == (after.reason is Reason.IN_BURST)
        grown = min(burst_budget(before, settings) + settings.burst_growth, settings.burst_max)
        expected_budget = grown if after.phase is Phase.SMALL else burst_budget(before, settings)
        assert burst_budget(after, settings) == expected_budget


def check_runs(taken: Sequence[tuple[State, Verdict, State]], settings: CollabSettings) -> None:
    """Nobody is stuck: no run of large steps is over its budget, no run of missing verdicts over its limit."""
    for model, run in groupby(taken, key=lambda each: each[0].model):
        steps = list(run)
        opened = steps[0][0]
        if model is Model.LARGE:
            bound = settings.warm_up_steps if opened.phase is Phase.WARM_UP else burst_budget(opened, settings)
            assert len(steps) <= bound
            is_cut = steps[-1][2].is_over or steps[-1] is taken[-1]
            assert len(steps) == bound or is_cut or steps[-1][1] is Verdict.PROGRESS
        else:
            assert all(verdict is not Verdict.NO_PROGRESS for _, verdict, _ in steps[:-1])
            missing_runs = [len(list(g)) for v, g in groupby(s[1] for s in steps) if v is Verdict.MISSING]
            assert max(missing_runs, default=0) <= settings.missing_limit


@pytest.mark.parametrize("settings", _SETTINGS.values(), ids=_SETTINGS)
def test_every_sequence_of_verdicts_goes_as_the_prose_says(settings: CollabSettings) -> None:
    for verdicts in product(Verdict, repeat=_LENGTH):
        taken = list(states(verdicts, settings))
        assert [before.model for before, _, _ in taken] == speakers_in_prose(verdicts, settings), verdicts
        for before, verdict, after in taken:
            check_step(before, verdict, after, settings)
        check_runs(taken, settings)


@given(any_settings, verdict_lists)
def test_long_trajectories_under_any_settings(settings: CollabSettings, verdicts: list[Verdict]) -> None:
    taken = list(states(verdicts, settings))
    assert [before.model for before, _, _ in taken] == speakers_in_prose(verdicts, settings)
    for before, verdict, after in taken:
        check_step(before, verdict, after, settings)
    check_runs(taken, settings)


@given(any_settings, verdict_lists)
def test_the_same_verdicts_lead_the_same_way(settings: CollabSettings, verdicts: list[Verdict]) -> None:
    assert list(states(verdicts, settings)) == list(states(verdicts, settings))


@given(any_settings, verdict_lists)
def test_a_trajectory_ends_at_its_last_step_and_takes_none_after_it(
    settings: CollabSettings, verdicts: list[Verdict]
) -> None:
    taken = list(states(verdicts, settings))
    if settings.max_steps is None:
        assert len(taken) == len(verdicts)
        return
    assert len(taken) == min(len(verdicts), settings.max_steps)
    if len(taken) == settings.max_steps:
        with pytest.raises(ValueError, match=f"ended at step {settings.max_steps}"):
            after_step(taken[-1][2], Verdict.PROGRESS, settings)


@given(any_settings, verdict_lists, st.sampled_from(Verdict))
def test_a_final_answer_ends_it_unless_the_opening_doubts_it(
    settings: CollabSettings, verdicts: list[Verdict], last: Verdict
) -> None:
    taken = list(states(verdicts, settings))
    state = taken[-1][2] if taken else opening(settings)
    if state.is_over:
        return
    after = after_step(state, last, settings, is_final=True)
    is_doubted = state.phase is Phase.WARM_UP and last is Verdict.NO_PROGRESS
    if is_doubted:
        assert after == after_step(state, last, settings)
    else:
        assert after.is_over
        assert after.reason is Reason.FINAL_ANSWER


@given(any_settings)
def test_no_progress_ever_gives_growing_bursts_with_one_small_step_between(settings: CollabSettings) -> None:
    """The budgets by themselves: first, first + growth, ... up to the cap, then the cap for good."""
    taken = list(states([Verdict.NO_PROGRESS] * 60, replace(settings, max_steps=None)))
    runs = [(model, len(list(group))) for model, group in groupby(before.model for before, _, _ in taken)]
    if settings.warm_up_steps:
        assert runs.pop(0) == (Model.LARGE, settings.warm_up_steps)
    bursts = [length for model, length in runs if model is Model.LARGE]
    assert all(length == 1 for model, length in runs if model is Model.SMALL)
    expected = [
        min(settings.burst_first + settings.burst_growth * place, settings.burst_max) for place in range(len(bursts))
    ]
    assert bursts[:-1] == expected[:-1]
    assert bursts[-1] <= expected[-1]


def test_the_follow_ups_budgets() -> None:
    """arXiv 2603.26034: two steps at first, two more after each burst that brought nothing, at most six."""
    taken = list(states([Verdict.NO_PROGRESS] * 24, _PAPER))
    runs = [len(list(group)) for model, group in groupby(b.model for b, _, _ in taken) if model is Model.LARGE]
    assert runs == [2, 2, 4, 6, 6]
