"""The table of transitions in docs/collab.md is what the code does, row by row, and no row is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agentinfer.collab_lang.controller import Phase, Reason, State, Verdict, after_step
from agentinfer.collab_lang.settings import CollabSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "collab.md"
SETTINGS = CollabSettings(max_steps=10)
# By what the first column says: states in which such a step is taken, and whether it gives a final answer.
PLACES: dict[str, tuple[list[State], bool]] = {
    "large, opening": ([State(Phase.WARM_UP)], False),
    "large, last of the opening": ([State(Phase.WARM_UP, steps=1)], False),
    "small": ([State(Phase.SMALL, steps=3), State(Phase.SMALL, steps=3, missing=1)], False),
    "small, third missing in a row": ([State(Phase.SMALL, steps=5, missing=2)], False),
    "large, burst": (
        [State(Phase.BURST, steps=4), State(Phase.BURST, steps=6, burst_steps=2, fruitless_bursts=1)],
        False,
    ),
    "large, last of the budget": (
        [
            State(Phase.BURST, steps=5, burst_steps=1),
            State(Phase.BURST, steps=7, burst_steps=3, fruitless_bursts=1),
            State(Phase.BURST, steps=8, burst_steps=5, fruitless_bursts=2),
            State(Phase.BURST, steps=8, burst_steps=5, fruitless_bursts=9),
        ],
        False,
    ),
    "either, its answer is final": ([State(Phase.SMALL, steps=3), State(Phase.BURST, steps=4)], True),
    "either, the last step allowed": ([State(Phase.SMALL, steps=9), State(Phase.BURST, steps=9)], False),
}
VERDICTS = {
    "any": set(Verdict),
    "progress": {Verdict.PROGRESS},
    "no progress": {Verdict.NO_PROGRESS},
    "missing": {Verdict.MISSING},
    "no progress or missing": {Verdict.NO_PROGRESS, Verdict.MISSING},
}


def rows() -> Iterator[list[str]]:
    table = (
        DOCUMENT.read_text(encoding="utf-8").split("<!-- transitions:begin -->")[1].split("<!-- transitions:end -->")[0]
    )
    for line in table.strip().splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_each_row_is_what_the_machine_does() -> None:
    for place, said, expected_next, reason in rows():
        states, is_final = PLACES[place]
        for state in states:
            for verdict in VERDICTS[said]:
                after = after_step(state, verdict, SETTINGS, is_final)
                speaker = "nobody" if after.is_over else after.model.value
                assert (speaker, f"`{after.reason}`") == (expected_next, reason), (place, verdict)


def test_no_reason_place_or_verdict_is_left_out() -> None:
    listed = list(rows())
    assert {row[3] for row in listed} == {f"`{each}`" for each in Reason} - {f"`{Reason.OPENING}`"}
    covered: dict[str, set[Verdict]] = {}
    for place, said, _, _ in listed:
        covered.setdefault(place, set()).update(VERDICTS[said])
    assert set(covered) == set(PLACES)
    assert covered["small"] == covered["large, burst"] == covered["large, opening"] == set(Verdict)


def test_the_defaults_in_the_text_are_the_defaults() -> None:
    text = " ".join(DOCUMENT.read_text(encoding="utf-8").split())
    default = CollabSettings()
    assert "two steps at first, two more after each burst that brought nothing, at most six" in text
    assert (default.burst_first, default.burst_growth, default.burst_max) == (2, 2, 6)
    assert "after 2 steps" in text
    assert default.warm_up_steps == 2
    assert "until three in a row count as no progress" in text
    assert default.missing_limit == 3
    assert replace(SETTINGS, max_steps=40) == default
