"""The extractive note: within its budget, verbatim, spread by value, and of use to the turns that follow."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from agentinfer.compress.anchors import anchors, occurs
from agentinfer.compress.distiller import Assignment, sources_of
from agentinfer.compress.extractive import ExtractiveDistiller
from agentinfer.compress.fidelity import verified
from agentinfer.compress.memory import Observation
from agentinfer.compress.note import Line, Note
from agentinfer.compress.offline import Exchange, compress_session
from agentinfer.compress.settings import Settings
from agentinfer.replay.traces import read_trace

LISTING = Observation(
    3, "bash", '{"command": "ls -la"}', "total 144\n" + "-rw-r--r-- 1 root 44829 May  6 CHANGES.rst\n" * 40
)
SEARCH = Observation(
    5,
    "bash",
    '{"command": "grep -n def src/schema.py"}',
    "788:    def _do_load(self, data):\n791:    def _invoke_validators(self, unmarshal):\n" + "and words only\n" * 30,
)
RUN = Observation(
    7,
    "bash",
    '{"command": "python reproduce.py"}',
    "<returncode>1</returncode>\nTraceback (most recent call last):\n"
    '  File "/testbed/src/schema.py", line 628, in load\n'
    "    result = _do_load(data)\nTypeError: 'NoneType' object is not subscriptable\n",
)
PROSE = Observation(9, "read", "", "Only words stand here, and none of them can be checked. " * 8)


def assignment(*observations: Observation, budget_tokens: int = 200, **said: str) -> Assignment:
    return Assignment(said.get("task", ""), said.get("reasoning", ""), observations, budget_tokens, 0.3)


def made(given: Assignment) -> Note:
    return ExtractiveDistiller().note(given)


@pytest.mark.parametrize("budget_tokens", [0, 1, 10, 30, 35, 40, 50, 80, 200, 1000])
def test_the_text_never_exceeds_the_budget(budget_tokens: int) -> None:
    given = assignment(LISTING, SEARCH, RUN, PROSE, budget_tokens=budget_tokens)
    assert len(made(given).text()) <= given.budget_chars


def test_a_budget_with_room_for_a_piece_is_used() -> None:
    given = assignment(SEARCH, RUN, budget_tokens=50)
    assert not made(given).is_empty
    whole = assignment(SEARCH, RUN, budget_tokens=1000)
    kept = made(whole).text()
    assert all(each in kept for each in ("_do_load", "_invoke_validators", "788", "791", "628"))


def test_the_same_assignment_gives_the_same_note_by_both_doors() -> None:
    given = assignment(LISTING, SEARCH, RUN)
    assert asyncio.run(ExtractiveDistiller().distil(given)) == made(given) == made(given)


def test_failures_become_dead_ends_with_what_failed() -> None:
    note = made(assignment(SEARCH, RUN))
    assert note.dead_ends == (Line("TypeError: 'NoneType' object is not subscriptable", 7),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all fine\n<returncode>0</returncode>", ""),
        ("nothing said\n<returncode>2</returncode>", "returncode 2"),
        ("Exited with code 137", "Exited with code 137"),
        ("a.c:3:1: error: expected ';'\nmake stopped", "a.c:3:1: error: expected ';'"),
        ("bash: foo: command not found", "bash: foo: command not found"),
        ("FAILED tests/test_a.py::test_b - assert 1 == 2", "FAILED tests/test_a.py::test_b - assert 1 == 2"),
        ("the word error in a sentence\nErrors are good", ""),
    ],
)
def test_what_counts_as_failed(text: str, expected: str) -> None:
    note = made(assignment(Observation(4, "bash", "", text), budget_tokens=400))
    assert [line.text for line in note.dead_ends] == ([expected] if expected else [])


def test_what_stays_in_the_context_anyway_is_not_said_again() -> None:
    given = assignment(SEARCH, reasoning="I see _do_load there", task="why does line 788 fail?")
    kept = made(given).text()
    assert "_do_load" not in kept
    assert "788" not in kept
    assert "_invoke_validators" in kept


def test_the_budget_goes_to_the_observations_of_value_not_to_the_first() -> None:
    dull = replace(LISTING, text="\n".join(f"/usr/lib/python3/site-packages/pkg{n}/mod{n}.py" for n in range(300)))
    note = made(assignment(dull, SEARCH, RUN, budget_tokens=70))
    assert {5} <= {line.source for line in note.facts}
    assert "_invoke_validators" in note.text()


def test_a_short_number_is_told_with_its_line_only() -> None:
    note = made(
        assignment(Observation(1, "", "", "17\n18 }\nThe build took 43 seconds of 2.20.0\n0x1fff"), budget_tokens=400)
    )
    assert note.facts == (Line("The build took 43 seconds of 2.20.0; 0x1fff", 1),)


def test_an_observation_of_words_only_still_gives_a_note() -> None:
    note = made(assignment(PROSE))
    assert [line.source for line in note.facts] == [9]
    assert note.facts[0].text in PROSE.text


def test_odd_texts_keep_every_promise() -> None:
    for text in (
        "\x00\n\t",
        "a_b;" * 500,
        "[" * 300,
        "1,234,567" * 50,
        "x_1\r\ny_2\u2028z_3",
        "号码2.20在foo_bar " * 30,
    ):
        given = assignment(Observation(1, "", "", text), budget_tokens=90)
        note = made(given)
        assert len(note.text()) <= given.budget_chars
        assert verified(note, sources_of(given.observations)).dropped == ()


TRACES = os.environ.get("AGENTINFER_TRACES")


@pytest.mark.skipif(not TRACES, reason="AGENTINFER_TRACES names no folder of recorded sessions")
@pytest.mark.parametrize(("trace", "least_gain"), [("swe_dev", 4.0), ("swe_glm45", 2.0)])
def test_on_recorded_sessions_it_keeps_more_of_what_is_needed_than_first_words_do(
    trace: str, least_gain: float
) -> None:
    """Of anchors first seen in a compressed result, not in what stays, and used by a later turn."""
    needed = by_note = by_first_words = 0
    for session in read_trace(str(Path(str(TRACES)) / f"{trace}.jsonl.xz")).sessions[:12]:
        exchanges = [Exchange(tuple(turn.prompt), turn.reply) for turn in session.turns]
        replies = ["\n".join((str(each.reply.get("content")), str(each.reply.get("tool_calls")))) for each in exchanges]
        for outcome in compress_session(exchanges, made, Settings()):
            if outcome.started is None:
                continue
            given = outcome.started.assignment
            note = made(given)
            assert len(note.text()) <= given.budget_chars
            assert verified(note, sources_of(given.observations)).dropped == ()
            later = "\n".join(replies[outcome.index + 3 :])
            stays = "\n".join((given.task, given.reasoning, *(each.arguments_text for each in given.observations)))
            wanted = {
                anchor
                for each in given.observations
                for anchor in anchors(each.text)
                if len(anchor) > 2 and occurs(anchor, later) and not occurs(anchor, stays)
            }
            room = (given.budget_chars - 110) // len(given.observations) - 8
            first_words = "\n".join(each.text[: max(0, room)] for each in given.observations)
            needed += len(wanted)
            by_note += sum(occurs(anchor, note.text()) for anchor in wanted)
            by_first_words += sum(occurs(anchor, first_words) for anchor in wanted)
    assert needed > 100
    assert by_note >= least_gain * by_first_words, (needed, by_note, by_first_words)
