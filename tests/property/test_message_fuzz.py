"""Whatever JSON a client sends, reading it never raises anything but a named hint error."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from agentinfer.errors import HintError
from agentinfer.hints import from_wire, parse_hints
from agentinfer.messages import PATHS, Conversation, Reply
from tests.agent_sessions import Bench

APIS = ("chat", "completions", "responses", "anthropic", "generate")

# Values under the field names that are read, so that the fuzz reaches behind the first check.
KEYS = st.sampled_from(
    """
    role content text type tool_calls function name arguments id tool_call_id call_id tool_use_id input output thinking
    reasoning_content summary choices message delta index finish_reason output_ids meta_info completion_tokens item
    response content_block partial_json usage stop_reason status messages prompt input_ids system instructions tools
    previous_response_id model agentinfer session turn parent v tool last forced token_ids expected_tool_s session_id
    prompt_cache_key nvext agent_hints agent_context trajectory_id priority osl program_id extra_body
    """.split()  # noqa: SIM905 - a list of 60 quoted names would be harder to read
)
WORDS = st.sampled_from(
    """
    assistant user system tool text tool_use tool_result function_call message reasoning function_call_output
    message_start content_block_start content_block_delta response.completed
    """.split()  # noqa: SIM905
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=6)
MESSAGE_LISTS = st.lists(OBJECTS, max_size=4)
BODIES = st.one_of(
    OBJECTS,
    st.fixed_dictionaries({"messages": MESSAGE_LISTS}, optional={"system": JSON, "tools": JSON}),
    st.fixed_dictionaries({"input": MESSAGE_LISTS | st.text()}, optional={"previous_response_id": SCALARS}),
    st.fixed_dictionaries({"prompt": st.text() | st.lists(st.integers(), max_size=4)}),
    st.fixed_dictionaries({"text": st.text()}),
)
EVENTS = st.lists(OBJECTS, max_size=5)


@given(path=st.sampled_from(PATHS), body=BODIES)
def test_any_body_is_read_and_followed(path, body):
    conversation = Conversation.from_body(path, body)
    if conversation is None:
        return
    assert len(conversation.chain) == len(conversation.messages)
    for message in conversation.messages:
        assert isinstance(message.text, str)
        assert isinstance(message.as_openai(), dict)
        assert message.size_bytes > 0
    bench = Bench()
    turn = bench.begin(conversation)
    bench.finish(turn, Reply("a reply"))
    retried = bench.begin(Conversation.from_body(path, body))
    bench.finish(retried, Reply(), "error")


@given(api=st.sampled_from(APIS), body=JSON)
def test_any_response_is_read(api, body):
    reply = Reply.from_json(api, body)
    assert len(reply.message.digest) == 16


@given(api=st.sampled_from(APIS), events=EVENTS, cut=st.integers(0, 400), junk=st.binary(max_size=10))
def test_any_stream_is_read(api, events, cut, junk):
    data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    assert isinstance(Reply.from_sse(api, data[: len(data) - cut] + junk).text, str)


@given(
    body=OBJECTS, headers=st.dictionaries(st.sampled_from(["x-agentinfer-session", "x-dynamo-session-id"]), st.text())
)
def test_hints_are_read_or_refused_by_name(body, headers):
    with contextlib.suppress(HintError):
        hints = parse_hints(body, headers)
        assert hints.session is None or 1 <= len(hints.session) <= 256
        assert from_wire(hints.to_wire()).session == hints.session
