"""A session in the state machine: verdicts in time, late, too late or never, models that are away, branches."""

from __future__ import annotations

import pytest

from agentinfer.collab_lang.controller import Model, Reason, Verdict
from agentinfer.collab_lang.progress import Judgement
from agentinfer.collab_lang.settings import Check, CollabSettings
from agentinfer.collab_lang.trajectory import UNAVAILABLE, Choice, Trajectory

YES = Judgement(True, 0.9, "found the file")
NO = Judgement(False, 0.2, "read it again")
NO_WARM_UP = CollabSettings(warm_up_steps=0, max_steps=None)


def take(trajectory: Trajectory, judgement: Judgement | None = None) -> Choice:
    """One step by the model whose turn it is, judged in time where `judgement` is given."""
    choice = trajectory.begin_step()
    step = trajectory.end_step(choice.model)
    assert step == choice.step
    if judgement is not None:
        trajectory.judged(step, judgement)
    return choice


def test_transitions_say_who_spoke_what_the_check_said_and_who_is_next() -> None:
    trajectory = Trajectory(CollabSettings(warm_up_steps=1, max_steps=None))
    for judgement in (YES, NO, YES, None):
        take(trajectory, judgement)
    trajectory.finish()
    assert [each.as_json() for each in trajectory.transitions] == [
        {
            "step": 0,
            "model": "large",
            "verdict": "progress",
            "next_model": "small",
            "reason": "warm_up_done",
            "p_true": 0.9,
            "why": "found the file",
        },
        {
            "step": 1,
            "model": "small",
            "verdict": "no_progress",
            "next_model": "large",
            "reason": "no_progress",
            "p_true": 0.2,
            "why": "read it again",
        },
        {
            "step": 2,
            "model": "large",
            "verdict": "progress",
            "next_model": "small",
            "reason": "recovered",
            "p_true": 0.9,
            "why": "found the file",
        },
        {"step": 3, "model": "small", "verdict": "missing", "next_model": "small", "reason": "no_verdict"},
    ]


def test_choices_carry_the_reason_of_the_transition_before() -> None:
    trajectory = Trajectory(CollabSettings(warm_up_steps=1, max_steps=None))
    choices = [take(trajectory, judgement) for judgement in (NO, YES, NO, NO, NO)]
    assert [(each.step, each.model, each.reason) for each in choices] == [
        (0, Model.LARGE, Reason.OPENING),
        (1, Model.SMALL, Reason.WARM_UP_DONE),
        (2, Model.SMALL, Reason.PROGRESS),
        (3, Model.LARGE, Reason.NO_PROGRESS),
        (4, Model.LARGE, Reason.IN_BURST),
    ]
    assert trajectory.begin_step() == Choice(5, Model.SMALL, Reason.BUDGET_SPENT)


def test_the_threshold_decides_where_there_is_a_probability() -> None:
    """Written TRUE with 0.9, which a threshold of 0.95 does not believe."""
    trajectory = Trajectory(CollabSettings(warm_up_steps=0, threshold=0.95, max_steps=None))
    take(trajectory, YES)
    assert trajectory.begin_step() == Choice(1, Model.LARGE, Reason.NO_PROGRESS)


def test_a_late_verdict_changes_nothing_in_the_step_that_began_and_counts_at_its_end() -> None:
    trajectory = Trajectory(NO_WARM_UP)
    take(trajectory)
    assert trajectory.begin_step() == Choice(1, Model.SMALL, Reason.NO_VERDICT)
    trajectory.judged(0, NO)
    trajectory.end_step(Model.SMALL)
    assert trajectory.late_verdicts == 1
    assert trajectory.begin_step() == Choice(2, Model.LARGE, Reason.NO_PROGRESS)
    assert [each.verdict for each in trajectory.transitions] == [Verdict.MISSING, Verdict.NO_PROGRESS]


@pytest.mark.parametrize("order", ["late first", "own first"])
def test_a_steps_own_verdict_is_preferred_to_a_late_one(order: str) -> None:
    trajectory = Trajectory(NO_WARM_UP)
    take(trajectory)
    trajectory.begin_step()
    trajectory.end_step(Model.SMALL)
    said = [(0, NO), (1, YES)]
    for step, judgement in said if order == "late first" else reversed(said):
        trajectory.judged(step, judgement)
    assert trajectory.begin_step() == Choice(2, Model.SMALL, Reason.PROGRESS)


def test_a_late_verdict_about_the_other_model_does_not_count() -> None:
    """The small model's FALSE brought the large one; one more FALSE about the large one's first step comes too late."""
    trajectory = Trajectory(CollabSettings(warm_up_steps=0, burst_first=1, burst_max=1, max_steps=None))
    take(trajectory, NO)
    take(trajectory)
    assert trajectory.begin_step() == Choice(2, Model.SMALL, Reason.BUDGET_SPENT)
    trajectory.judged(1, NO)
    trajectory.end_step(Model.SMALL)
    assert trajectory.begin_step() == Choice(3, Model.SMALL, Reason.NO_VERDICT)
    assert trajectory.late_verdicts == 1


def test_a_verdict_two_steps_late_is_forgotten() -> None:
    trajectory = Trajectory(NO_WARM_UP)
    for _ in range(2):
        take(trajectory)
    trajectory.begin_step()
    trajectory.judged(0, NO)
    trajectory.end_step(Model.SMALL)
    trajectory.finish()
    assert [each.verdict for each in trajectory.transitions] == [Verdict.MISSING] * 3


def test_verdicts_that_never_come_bring_the_large_model_at_the_limit() -> None:
    trajectory = Trajectory(CollabSettings(warm_up_steps=0, missing_limit=3, check=Check.OFF, max_steps=None))
    choices = [take(trajectory) for _ in range(7)]
    assert [each.model.value for each in choices] == ["small"] * 3 + ["large"] * 2 + ["small"] * 2
    assert choices[3].reason == Reason.VERDICTS_MISSING


def test_an_absent_model_is_stood_in_for_and_the_machine_goes_on() -> None:
    trajectory = Trajectory(CollabSettings(warm_up_steps=1, max_steps=None))
    choice = trajectory.begin_step({Model.SMALL})
    assert choice == Choice(0, Model.SMALL, UNAVAILABLE)
    trajectory.judged(trajectory.end_step(choice.model), NO)
    assert trajectory.begin_step() == Choice(1, Model.SMALL, Reason.WARM_UP_DONE)
    assert trajectory.transitions[0].speaker is Model.SMALL
    with pytest.raises(ValueError, match="no model is available"):
        trajectory.begin_step(())


def test_a_step_that_failed_is_begun_again_as_it_was() -> None:
    trajectory = Trajectory(NO_WARM_UP)
    take(trajectory, NO)
    first = trajectory.begin_step()
    assert trajectory.begin_step() == first
    assert len(trajectory.transitions) == 1


def test_a_final_answer_ends_it_with_its_reason() -> None:
    trajectory = Trajectory(NO_WARM_UP)
    trajectory.end_step(trajectory.begin_step().model, is_final=True)
    assert trajectory.finish().is_over
    assert trajectory.transitions[-1].reason is Reason.FINAL_ANSWER
    assert trajectory.finish() == trajectory.state, "closing twice closes once"
    assert len(trajectory.transitions) == 1
    with pytest.raises(ValueError, match="ended at step 1"):
        trajectory.begin_step()


def test_a_final_answer_of_the_opening_that_is_doubted_does_not_end_it() -> None:
    trajectory = Trajectory(CollabSettings(warm_up_steps=2))
    trajectory.judged(trajectory.end_step(trajectory.begin_step().model, is_final=True), NO)
    assert trajectory.begin_step() == Choice(1, Model.LARGE, Reason.WARM_UP)


def test_the_last_step_allowed_ends_it() -> None:
    trajectory = Trajectory(CollabSettings(warm_up_steps=1, max_steps=2))
    take(trajectory, YES)
    take(trajectory, YES)
    with pytest.raises(ValueError, match="ended at step 2"):
        trajectory.begin_step()
    assert trajectory.transitions[-1].reason is Reason.STEPS_SPENT


def test_a_branch_goes_its_own_way_from_an_open_step() -> None:
    """Forked while a check runs: the verdict so far is both's, later ones are each one's own."""
    trajectory = Trajectory(NO_WARM_UP)
    take(trajectory, NO)
    branch = trajectory.fork()
    assert branch.begin_step() == trajectory.begin_step() == Choice(1, Model.LARGE, Reason.NO_PROGRESS)
    branch.judged(branch.end_step(Model.LARGE), YES)
    trajectory.end_step(Model.LARGE)
    assert branch.begin_step() == Choice(2, Model.SMALL, Reason.RECOVERED)
    assert trajectory.begin_step() == Choice(2, Model.LARGE, Reason.IN_BURST)


def test_a_branch_takes_a_late_verdict_as_its_origin_would() -> None:
    trajectory = Trajectory(NO_WARM_UP)
    take(trajectory)
    trajectory.begin_step()
    branch = trajectory.fork()
    for each in (trajectory, branch):
        each.judged(0, NO)
        each.end_step(Model.SMALL)
        assert each.begin_step() == Choice(2, Model.LARGE, Reason.NO_PROGRESS)


def test_a_long_session_keeps_its_newest_transitions() -> None:
    trajectory = Trajectory(NO_WARM_UP)
    for _ in range(300):
        take(trajectory, YES)
    trajectory.finish()
    assert len(trajectory.transitions) == 256
    assert trajectory.transitions[-1].step == 299
