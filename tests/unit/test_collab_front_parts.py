"""The virtual model's pure parts: a reply out of two streams, metrics of two servers, load, what engines are sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentinfer.clock import ManualClock
from agentinfer.collab_lang.settings import Check, CollabSettings
from agentinfer.collab_lang.virtual_model.busy_share import BusyShare
from agentinfer.collab_lang.virtual_model.exposition import merged
from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings
from agentinfer.collab_lang.virtual_model.outgoing import can_be_continued, continued
from agentinfer.collab_lang.virtual_model.reply_stream import ReplyStream
from agentinfer.errors import ConfigError

# A chunk of a stream: a piece of text, of reasoning, or of a call.
parts = st.one_of(
    st.tuples(st.just("content"), st.text("ab ", min_size=1, max_size=3)),
    st.tuples(st.just("reasoning_content"), st.text("xy", min_size=1, max_size=3)),
    st.tuples(st.just("tool_calls"), st.just("{}")),
)


def chunk(field: str, text: str) -> dict[str, Any]:
    value: Any = [{"index": 0, "function": {"name": "look", "arguments": text}}] if field == "tool_calls" else text
    return {"id": "i", "model": "m", "choices": [{"index": 0, "delta": {field: value}, "finish_reason": None}]}


def told(chunks: list[dict[str, Any]], field: str) -> list[Any]:
    return [choice["delta"][field] for each in chunks for choice in each["choices"] if choice["delta"].get(field)]


@given(first=st.lists(parts), second=st.lists(parts))
def test_what_is_sent_of_two_streams_is_one_reply(first: list[tuple[str, str]], second: list[tuple[str, str]]) -> None:
    """The first engine dies after any number of chunks; the second one speaks to its end."""
    stream, sent = ReplyStream("collab", wants_usage=False), []
    for part in first:
        sent += stream.take(chunk(*part))
    assert not told(sent, "tool_calls")
    prefix = "".join(told(sent, "content"))
    assert stream.sent_text == prefix
    stream.resume()
    for part in second:
        sent += stream.take(chunk(*part))
    finish = {"id": "j", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    sent += stream.take(finish)
    sent += stream.rest({"a": 1})
    assert "".join(told(sent, "content")) == prefix + "".join(text for field, text in second if field == "content")
    assert len(told(sent, "tool_calls")) == sum(field == "tool_calls" for field, _ in second)
    assert sent[-1]["agentinfer"] == {"a": 1}
    assert sum("agentinfer" in each for each in sent) == 1
    reply = stream.reply()
    assert reply.text == "".join(told(sent, "content"))
    assert reply.reasoning_text == "".join(told(sent, "reasoning_content"))
    assert reply.finish_reason == "stop"
    assert {each["id"] for each in sent} == {"i" if first or second else "j"}


def test_a_taken_up_replys_usage_counts_what_the_first_engine_said_as_said() -> None:
    stream = ReplyStream("collab", wants_usage=True)
    for text in "ab":
        stream.take(chunk("content", text))
    stream.resume()
    stream.take(chunk("content", "c"))
    stream.take({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13}})
    (last,) = stream.rest({})
    assert last["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    usage = stream.usage()
    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (10, 0, 3)


def test_metrics_of_two_servers_are_one_text() -> None:
    text = (
        "# HELP s Seconds.\n# TYPE s histogram\n"
        's_bucket{le="1.0",m="a{b"} 1.0\ns_bucket{le="+Inf",m="a{b"} 2.0\ns_count{m="a{b"} 2.0\n'
        "# HELP up Up.\n# TYPE up gauge\nup 1.0\n"
    )
    lines = merged({"large": text, "small": text}, "engine").splitlines()
    assert lines[:2] == ["# HELP s Seconds.", "# TYPE s histogram"]
    assert lines[2] == 's_bucket{engine="large",le="1.0",m="a{b"} 1.0'
    assert lines[5] == 's_bucket{engine="small",le="1.0",m="a{b"} 1.0'
    assert lines[8:] == ["# HELP up Up.", "# TYPE up gauge", 'up{engine="large"} 1.0', 'up{engine="small"} 1.0']
    assert merged({"large": "up{} 1"}, "engine") == 'up{engine="large"} 1\n'
    assert merged({}, "engine") == ""


def test_the_busy_share_follows_the_work_and_fades() -> None:
    clock = ManualClock()
    busy = BusyShare(clock, fading_s=10.0)
    assert busy.share == 0.0
    busy.begin()
    clock.advance(1000.0)
    assert busy.share == pytest.approx(1.0)
    busy.end()
    clock.advance(10.0)
    assert busy.share == pytest.approx(0.3679, abs=1e-4)
    # Two at once are no busier than one, and one of them is enough.
    busy.begin()
    busy.begin()
    busy.end()
    clock.advance(1000.0)
    assert busy.share == pytest.approx(1.0)
    assert busy.num_working == 1


def test_a_continuation_keeps_the_clients_own_beginning() -> None:
    body = {"messages": [{"role": "assistant", "content": "So "}], "continue_final_message": True, "max_tokens": 2}
    sent = continued(body, "it is", 5)
    assert sent["messages"] == [{"role": "assistant", "content": "So it is"}]
    assert sent["max_tokens"] == 1
    assert continued(body, "", 0) == body


@pytest.mark.parametrize(
    ("fields", "is_free"),
    [
        ({}, True),
        ({"n": 1, "response_format": {"type": "text"}}, True),
        ({"n": 2}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"regex": "a*"}, False),
        ({"ebnf": "root ::= x"}, False),
    ],
)
def test_only_one_free_reply_can_be_taken_up(fields: dict[str, Any], is_free: bool) -> None:
    assert can_be_continued(fields) is is_free


@pytest.mark.parametrize(
    "fields",
    [
        {"collab": CollabSettings(max_steps=3)},
        {"name": "default"},
        {"name": ""},
        {"check_timeout_s": 0},
        {"misses_to_down": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FrontSettings(**fields)
    FrontSettings(CollabSettings(max_steps=None, check=Check.OFF))
