"""Verdicts that come in time, late, too late and never, in any order: each counts where it should, at most once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentinfer.collab_lang.controller import Model, Verdict, after_step, opening
from agentinfer.collab_lang.progress import Judgement
from agentinfer.collab_lang.settings import CollabSettings
from agentinfer.collab_lang.trajectory import Trajectory

settings = st.builds(
    CollabSettings, warm_up_steps=st.integers(0, 2), missing_limit=st.integers(1, 3), max_steps=st.just(None)
)
# For each step: what its check says, in which step after it the answer comes, None for never, and who cannot speak.
steps = st.lists(
    st.tuples(st.booleans(), st.none() | st.integers(0, 3), st.none() | st.sampled_from(Model)), max_size=40
)


@given(settings, steps, st.randoms(use_true_random=False))
def test_a_verdict_counts_for_its_step_or_for_the_next_one_of_the_same_model(
    settings: CollabSettings, steps: list[tuple[bool, int | None, Model | None]], order: object
) -> None:
    trajectory = Trajectory(settings)
    speakers: list[Model] = []
    due: dict[int, list[int]] = {}
    num_late = 0
    for place, (_, delay, absent) in enumerate(steps):
        choice = trajectory.begin_step([model for model in Model if model is not absent])
        assert choice.step == place
        assert choice.model is not absent
        speakers.append(choice.model)
        trajectory.end_step(choice.model)
        if delay is not None:
            due.setdefault(place + delay, []).append(place)
        arriving = due.pop(place, [])
        order.shuffle(arriving)  # type: ignore[attr-defined]
        for each in arriving:
            trajectory.judged(each, Judgement(steps[each][0], reason=str(each)))
            num_late += each < place
    trajectory.finish()

    state = opening(settings)
    for place, transition in enumerate(trajectory.transitions):
        used = source(steps, speakers, place)
        expected = Verdict.MISSING if used is None else Verdict.PROGRESS if steps[used][0] else Verdict.NO_PROGRESS
        assert (transition.verdict, transition.why) == (expected, "" if used is None else str(used))
        state = after_step(state, expected, settings)
        assert (transition.speaker, transition.next_model, transition.reason) == (
            speakers[place],
            state.model,
            state.reason,
        )
    assert trajectory.late_verdicts == num_late
    assert trajectory.state == state


def source(steps: list[tuple[bool, int | None, Model | None]], speakers: list[Model], place: int) -> int | None:
    """The step whose verdict decides what follows step `place`."""
    if steps[place][1] == 0:
        return place
    if place and steps[place - 1][1] == 1 and speakers[place - 1] is speakers[place]:
        return place - 1
    return None
