"""The check as a chat completion: what is asked, and what is read from answers, whole or broken."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentinfer.collab_lang.check_request import check_body, read_answer
from agentinfer.collab_lang.progress import BLOCK_REGEX, QUESTION, QUESTION_FOR_VALUE, VALUE_REGEX
from agentinfer.collab_lang.settings import Check, CollabSettings

BLOCK, VALUE = CollabSettings(check=Check.BLOCK), CollabSettings(check=Check.VERDICT)
HISTORY = [{"role": "user", "content": "find it"}]
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def row(token: str, *alternatives: tuple[str, float | None]) -> dict[str, Any]:
    listed = [{"token": text, "logprob": logprob} for text, logprob in alternatives]
    return {"token": token, "logprob": -0.1, "top_logprobs": listed}


def answer(text: str | None, rows: object = None) -> dict[str, Any]:
    logprobs = None if rows is None else {"content": rows}
    return {"choices": [{"message": {"role": "assistant", "content": text}, "logprobs": logprobs}]}


def block_answer(*value: dict[str, Any]) -> dict[str, Any]:
    """A block in tokens as tokenizers cut it; the reason says TRUE too, which must not be taken for the value."""
    before = [
        "===",
        "PROG",
        "RESS",
        "===\n",
        "<",
        "reason",
        ">",
        " It",
        " is",
        " TRUE",
        " that",
        " the",
        " file",
        " was",
    ]
    before += [" found", " where", " expected", " </", "reason", ">\n", "<", "value", ">"]
    after = [" </", "value", ">\n", "===", "END", "_", "PROGRESS", "==="]
    rows = [row(each, (each, -0.01), ("FALSE", -3.0)) for each in before]
    rows += [*value, *(row(each, (each, -0.01)) for each in after)]
    return answer("".join(each["token"] for each in rows), rows)


def test_the_question_continues_what_the_step_saw() -> None:
    reply = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    body = check_body(HISTORY, reply, BLOCK, TOOLS)
    assert body["messages"][:2] == [*HISTORY, reply]
    assert [each["role"] for each in body["messages"]] == ["user", "assistant", "tool", "user"]
    assert body["messages"][-1]["content"] == QUESTION
    assert body["regex"] == BLOCK_REGEX
    assert (body["tools"], body["tool_choice"]) == (TOOLS, "auto")
    assert body["temperature"] == 0
    assert json.loads(json.dumps(body)) == body


def test_a_verdict_alone_takes_one_token() -> None:
    body = check_body(HISTORY, {"role": "assistant", "content": "done"}, VALUE)
    assert body["messages"][-1]["content"] == QUESTION_FOR_VALUE
    assert (body["regex"], body["max_tokens"]) == (VALUE_REGEX, 1)
    assert "tools" not in body


def test_no_check_has_no_request() -> None:
    with pytest.raises(ValueError, match="off"):
        check_body(HISTORY, {"role": "assistant", "content": "x"}, CollabSettings(check=Check.OFF))


@pytest.mark.parametrize(
    "value",
    [
        [row(" TR", (" TR", math.log(0.6)), (" F", math.log(0.2))), row("UE", ("UE", 0.0))],
        [row(" TRUE", (" TRUE", math.log(0.6)), (" FALSE", math.log(0.2)), (" FAL", None))],
        [row(" ", (" ", 0.0)), row("TRUE", ("TRUE", math.log(0.75)), ("FALSE", math.log(0.25)))],
    ],
    ids=["word in pieces", "whole word", "space by itself"],
)
def test_the_probability_is_that_of_the_token_where_the_value_begins(value: list[dict[str, Any]]) -> None:
    found = read_answer(block_answer(*value), BLOCK)
    assert found is not None
    assert found.is_progress
    assert found.p_true == pytest.approx(0.75)
    assert found.reason == "It is TRUE that the file was found where expected"


def test_a_bare_value_has_its_probability_at_the_first_token() -> None:
    found = read_answer(
        answer("F", [row("F", ("F", math.log(0.5)), ("TR", math.log(0.25)), ("T", math.log(0.25)))]), VALUE
    )
    assert found is not None
    assert not found.is_progress
    assert found.p_true == pytest.approx(0.5)


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [],
        "x",
        [None],
        [{}],
        [{"token": 1}],
        [row("TRUE")],
        *([row("TRUE", ("TRUE", p))] for p in (None, -3.4e38)),
    ],
    ids=repr,
)
def test_without_alternatives_the_word_stands_alone(rows: object) -> None:
    for settings, text in ((VALUE, "TRUE"), (BLOCK, block_answer(row(" TRUE"))["choices"][0]["message"]["content"])):
        found = read_answer(answer(text, rows), settings)
        assert found is not None
        assert found.is_progress
        assert found.p_true is None


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"choices": []},
        {"choices": [None]},
        {"choices": [{"message": None}]},
        answer(None),
        answer(""),
        answer("===PROGRESS===\n<reason> it stopped in the mid"),
        {"error": {"message": "model is loading"}},
    ],
    ids=repr,
)
@pytest.mark.parametrize("settings", [BLOCK, VALUE], ids=["block", "verdict"])
def test_an_answer_without_a_verdict_is_none(body: object, settings: CollabSettings) -> None:
    assert read_answer(body, settings) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["TRUE", "<value>", "T", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "logprobs", "token", "logprob", "top_logprobs"]), inner
        )
    ),
    max_leaves=20,
)


@given(json_values, json_values, st.sampled_from([BLOCK, VALUE]))
def test_reading_survives_any_json(logprobs: object, body: object, settings: CollabSettings) -> None:
    read_answer(body, settings)
    found = read_answer({"choices": [{"message": {"content": "TRUE"}, "logprobs": {"content": logprobs}}]}, settings)
    assert (found is None) == (settings is BLOCK)
    assert found is None or found.p_true is None or 0.0 <= found.p_true <= 1.0
