"""Hints: precedence between stacks, strictness of our own fields, the wire form."""

from __future__ import annotations

import pytest

from agentinfer.errors import HintError
from agentinfer.hints import NO_HINTS, AgentHints, Forced, from_wire, parse_hints

# From the strongest source to the weakest: (source, body, headers).
SOURCES = [
    ("agentinfer", {"agentinfer": {"session": "own"}}, {}),
    ("x-agentinfer-session", {}, {"x-agentinfer-session": "header"}),
    ("session_id", {"session_id": "sglang"}, {}),
    ("prompt_cache_key", {"prompt_cache_key": "openai"}, {}),
    ("nvext.agent_context.session_id", {"nvext": {"agent_context": {"session_id": "context"}}}, {}),
    ("x-dynamo-session-id", {}, {"x-dynamo-session-id": "dynamo"}),
    ("program_id", {"program_id": "thunder"}, {}),
]


@pytest.mark.parametrize("first", range(len(SOURCES)), ids=[source for source, _, _ in SOURCES])
def test_the_strongest_source_that_is_there_names_the_session(first):
    body, headers = {}, {}
    for _, more_body, more_headers in SOURCES[first:]:
        body |= more_body
        headers |= more_headers
    hints = parse_hints(body, headers)
    source, own_body, own_headers = SOURCES[first]
    alone = parse_hints(own_body, own_headers)
    assert hints.source == source
    assert hints.session == alone.session
    assert alone.session is not None


def test_no_hint_at_all_is_the_empty_hint():
    assert parse_hints({"messages": [], "nvext": {"agent_hints": {}}}, {"content-type": "x"}) is NO_HINTS


def test_own_object_carries_every_field():
    own = {
        "v": 1,
        "session": "s",
        "turn": 3,
        "parent": "p",
        "role": "planner",
        "tool": "bash",
        "expected_tool_s": 2,
        "last": True,
    }
    hints = parse_hints({"agentinfer": own}, {})
    assert hints == AgentHints("s", 3, "p", "planner", "bash", 2.0, True, "agentinfer")


def test_own_object_without_session_adds_to_another_stacks_session():
    hints = parse_hints({"agentinfer": {"tool": "bash"}, "session_id": "abc"}, {})
    assert (hints.session, hints.source, hints.tool) == ("abc", "session_id", "bash")


def test_null_fields_are_absent():
    assert parse_hints({"agentinfer": {"session": None, "turn": None}, "session_id": None}, {}) is NO_HINTS


LONG = "x" * 257
MALFORMED = [
    ("agentinfer", {"agentinfer": "s"}, {}),
    ("agentinfer.sesion", {"agentinfer": {"sesion": "s"}}, {}),
    ("agentinfer.v", {"agentinfer": {"v": 2}}, {}),
    ("agentinfer.v", {"agentinfer": {"v": True}}, {}),
    ("agentinfer.session", {"agentinfer": {"session": ""}}, {}),
    ("agentinfer.session", {"agentinfer": {"session": LONG}}, {}),
    ("agentinfer.session", {"agentinfer": {"session": "a\nb"}}, {}),
    ("agentinfer.session", {"agentinfer": {"session": 7}}, {}),
    ("agentinfer.turn", {"agentinfer": {"turn": -1}}, {}),
    ("agentinfer.turn", {"agentinfer": {"turn": True}}, {}),
    ("agentinfer.turn", {"agentinfer": {"turn": 1.0}}, {}),
    ("agentinfer.parent", {"agentinfer": {"session": "a", "parent": "a"}}, {}),
    ("agentinfer.role", {"agentinfer": {"role": "x" * 129}}, {}),
    ("agentinfer.tool", {"agentinfer": {"tool": "x" * 129}}, {}),
    ("agentinfer.expected_tool_s", {"agentinfer": {"expected_tool_s": float("nan")}}, {}),
    ("agentinfer.expected_tool_s", {"agentinfer": {"expected_tool_s": float("inf")}}, {}),
    ("agentinfer.expected_tool_s", {"agentinfer": {"expected_tool_s": -0.1}}, {}),
    ("agentinfer.expected_tool_s", {"agentinfer": {"expected_tool_s": 10**400}}, {}),
    ("agentinfer.expected_tool_s", {"agentinfer": {"expected_tool_s": False}}, {}),
    ("agentinfer.last", {"agentinfer": {"last": 1}}, {}),
    ("agentinfer.forced", {"agentinfer": {"forced": {}}}, {}),
    ("agentinfer.forced", {"agentinfer": {"forced": {"text": "a", "token_ids": [1]}}}, {}),
    ("agentinfer.forced.text", {"agentinfer": {"forced": {"text": 1}}}, {}),
    ("agentinfer.forced.token_ids", {"agentinfer": {"forced": {"token_ids": []}}}, {}),
    ("agentinfer.forced.token_ids", {"agentinfer": {"forced": {"token_ids": [1, True]}}}, {}),
    ("agentinfer.forced.token_ids", {"agentinfer": {"forced": {"token_ids": [-1]}}}, {}),
    ("x-agentinfer-session", {}, {"x-agentinfer-session": ""}),
    ("x-agentinfer-session", {"agentinfer": {"session": "ok"}}, {"x-agentinfer-session": LONG}),
    ("session_id", {"session_id": 5}, {}),
    ("session_id", {"session_id": {"a": 1}}, {}),
    ("prompt_cache_key", {"prompt_cache_key": ["a"]}, {}),
    ("program_id", {"program_id": 5}, {}),
    ("extra_body.program_id", {"extra_body": {"program_id": 5}}, {}),
    ("nvext.agent_context.trajectory_id", {"nvext": {"agent_context": {"trajectory_id": 5}}}, {}),
    ("nvext.agent_hints.priority", {"nvext": {"agent_hints": {"priority": "high"}}}, {}),
    ("nvext.agent_hints.osl", {"nvext": {"agent_hints": {"osl": -4}}}, {}),
    ("x-dynamo-session-id", {}, {"x-dynamo-session-id": "a\tb"}),
]


@pytest.mark.parametrize(
    ("field", "body", "headers"), MALFORMED, ids=[f"{i}-{case[0]}" for i, case in enumerate(MALFORMED)]
)
def test_a_malformed_hint_is_refused_by_its_name(field, body, headers):
    with pytest.raises(HintError) as caught:
        parse_hints(body, headers)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: expected ")


def test_an_unknown_field_of_ours_lists_the_known_ones():
    with pytest.raises(HintError, match="session, turn, parent, role, tool, expected_tool_s, last, forced"):
        parse_hints({"agentinfer": {"expected_seconds": 3}}, {})


def test_other_stacks_may_add_what_they_like():
    body = {
        "nvext": {"agent_hints": {"priority": 5, "osl": 64, "speculative_prefill": True, "new": {}}, "router": 3},
        "session_id": ["one id a prompt", "of a batch"],
        "prompt_cache_key": "",
    }
    hints = parse_hints(body, {"x-dynamo-parent-session-id": "p", "x-dynamo-session-final": "true"})
    assert (hints.session, hints.parent, hints.last) == (None, "p", True)
    assert (hints.priority, hints.expected_output_tokens) == (5, 64)


@pytest.mark.parametrize(
    ("context", "session", "parent"),
    [
        ({"session_id": "run", "trajectory_id": "t", "parent_trajectory_id": "p"}, "t", "p"),
        ({"workflow_id": "run", "program_id": "t", "parent_program_id": "p"}, "t", "p"),
        ({"session_id": "t", "parent_session_id": "p"}, "t", "p"),
    ],
    ids=["trajectory", "program", "session"],
)
def test_dynamo_agent_context_names_the_chain_not_the_run(context, session, parent):
    hints = parse_hints({"nvext": {"agent_context": context}}, {})
    assert (hints.session, hints.parent) == (session, parent)


def test_program_id_is_found_where_a_client_sends_extra_body_literally():
    assert parse_hints({"extra_body": {"program_id": "t"}}, {}).session == "t"


def test_forced_reply_is_validated_and_stays_off_the_wire():
    hints = parse_hints({"agentinfer": {"forced": {"token_ids": [5, 0]}}}, {})
    assert hints.forced == Forced(token_ids=(5, 0))
    assert hints.to_wire() == {"v": 1}
    assert parse_hints({"agentinfer": {"forced": {"text": ""}}}, {}).forced == Forced(text="")


def test_wire_form_is_flat_scalars_and_comes_back_whole():
    hints = AgentHints("s", 0, "p", "planner", "bash", 0.0, True, "session_id", -2, 64)
    wire = hints.to_wire()
    assert all(isinstance(value, str | int | float | bool) for value in wire.values())
    assert from_wire(wire) == hints
    assert from_wire(NO_HINTS.to_wire()) == NO_HINTS


@pytest.mark.parametrize(
    "wire", [{}, {"v": 2}, {"v": 1, "extra": 1}, {"v": 1, "turn": "1"}], ids=["none", "version", "unknown", "type"]
)
def test_a_foreign_wire_form_is_refused(wire):
    with pytest.raises(HintError):
        from_wire(wire)
