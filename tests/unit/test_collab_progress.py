"""The check's question, the grammar of its block, and what is read from answers of any kind."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentinfer.collab_lang import progress
from agentinfer.collab_lang.controller import Verdict
from agentinfer.collab_lang.progress import (
    BLOCK_REGEX,
    PENDING_RESULT,
    Judgement,
    probability_of_true,
    question_messages,
    read_block,
    read_value,
    verdict,
)

_FRAME = "===PROGRESS===\n<reason> {} </reason>\n<value>{}</value>\n===END_PROGRESS==="
blocks = st.from_regex(re.compile(BLOCK_REGEX), fullmatch=True)


@settings(max_examples=30)
@given(blocks)
def test_whatever_the_grammar_allows_is_read(text: str) -> None:
    found = read_block(text)
    assert found is not None
    assert found.is_progress == text.endswith("<value>TRUE</value>\n===END_PROGRESS===")
    assert found.reason == " ".join(text.split("<reason>")[1].split("</reason>")[0].split())


@settings(max_examples=30)
@given(blocks, st.text(), st.text())
def test_a_block_is_found_among_other_words(text: str, before: str, after: str) -> None:
    assert read_block(f"{before}{text}{after}") == read_block(text)


@settings(max_examples=30)
@given(blocks, st.data())
def test_a_block_cut_short_is_no_verdict(text: str, data: st.DataObject) -> None:
    assert read_block(text[: data.draw(st.integers(0, len(text) - 1))]) is None


@pytest.mark.parametrize(("words", "is_allowed"), [(9, False), (10, True), (20, True), (21, False)])
def test_a_reason_has_ten_to_twenty_words(words: int, is_allowed: bool) -> None:
    block = f"===PROGRESS===\n<reason> {' '.join(['word'] * words)} </reason>\n<value>TRUE</value>\n===END_PROGRESS==="
    assert (re.fullmatch(BLOCK_REGEX, block) is not None) == is_allowed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("TRUE", True),
        (" FALSE\n", False),
        ("T", True),
        ("FA", False),
        ("", None),
        ("true", None),
        ("TRUE FALSE", None),
        ("The", None),
    ],
)
def test_a_bare_value_is_read_from_its_beginning(text: str, expected: bool | None) -> None:
    found = read_value(text, 0.5)
    assert (found and found.is_progress) == expected
    assert found is None or found.p_true == 0.5


def test_the_question_follows_the_reply_and_stand_ins_for_results_to_come() -> None:
    reply: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a", "function": {"name": "f"}}, {"function": {"name": "g"}}],
    }
    assert question_messages(reply, "how?") == [
        reply,
        {"role": "tool", "tool_call_id": "a", "content": PENDING_RESULT},
        {"role": "tool", "tool_call_id": "", "content": PENDING_RESULT},
        {"role": "user", "content": "how?"},
    ]
    assert question_messages({"role": "assistant", "content": "x"}, "how?")[1:] == [{"role": "user", "content": "how?"}]


@pytest.mark.parametrize(
    ("alternatives", "expected"),
    [
        ([("TRUE", math.log(0.3)), ("FALSE", math.log(0.1))], 0.75),
        ([(" TR", math.log(0.2)), ("T", math.log(0.1)), (" FALSE", math.log(0.1)), ("F", 0.0 - 99)], 0.75),
        ([("TRUE", -0.1), ("maybe", -0.2), (" ", -0.01), ("", -0.5)], 1.0),
        ([("F", -9.0)], 0.0),
        ([], None),
        ([("yes", -0.1), ("\ufffd", -0.1), ("TRUEST", -0.1)], None),
        ([("TRUE", -5000.0), ("FALSE", -5000.0)], 0.5),
        ([("TRUE", 5000.0), ("FALSE", 5000.0)], 0.5),
        ([("TRUE", math.nan), ("FALSE", -1.0)], 0.0),
        ([("TRUE", -1.0), ("FALSE", -math.inf)], 1.0),
        ([("TRUE", math.inf), ("FALSE", -math.inf)], None),
    ],
    ids=[
        "both",
        "pieces",
        "one word only",
        "false only",
        "nothing",
        "other words",
        "too small for exp",
        "too large for exp",
        "nan",
        "impossible",
        "no finite one",
    ],
)
def test_probability_of_true(alternatives: list[tuple[str, float]], expected: float | None) -> None:
    found = probability_of_true(alternatives)
    assert found == (expected if expected is None else pytest.approx(expected))


@given(st.lists(st.tuples(st.text(" TRUEFALS<", max_size=6), st.floats())))
def test_a_probability_is_one_whatever_the_engine_reports(alternatives: list[tuple[str, float]]) -> None:
    found = probability_of_true(alternatives)
    assert found is None or 0.0 <= found <= 1.0


@pytest.mark.parametrize(
    ("judgement", "expected"),
    [
        (None, Verdict.MISSING),
        (Judgement(True), Verdict.PROGRESS),
        (Judgement(False), Verdict.NO_PROGRESS),
        (Judgement(True, 0.79), Verdict.NO_PROGRESS),
        (Judgement(False, 0.8), Verdict.PROGRESS),
    ],
)
def test_the_probability_overrules_the_word(judgement: Judgement | None, expected: Verdict) -> None:
    assert verdict(judgement, 0.8) is expected


def test_tokens_suffice_for_what_the_grammar_allows() -> None:
    """The longest block in ASCII, at two characters a token."""
    block = _FRAME.format(" ".join(["x" * 24] * 20), "FALSE")
    assert re.fullmatch(BLOCK_REGEX, block)
    assert len(block) / 2 < progress.BLOCK_MAX_TOKENS
