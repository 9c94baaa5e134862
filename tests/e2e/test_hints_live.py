"""Hints of every API and stack arrive at the scheduler's request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.live_server import LiveServer

pytestmark = pytest.mark.e2e

MESSAGES = [{"role": "user", "content": "Hello."}]
BODIES = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/completions": {"prompt": "Hello.", "max_tokens": 1},
    "/v1/responses": {"input": "Hello.", "max_output_tokens": 4},  # SGLang takes two off for itself
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 1},
    "/generate": {"text": "Hello.", "sampling_params": {"max_new_tokens": 1}},
}
CARRIERS = {
    "body object": ({"agentinfer": {"session": "S", "turn": 3, "role": "seeker", "tool": "search"}}, {}),
    "header": ({}, {"x-agentinfer-session": "S"}),
    "sglang": ({"session_id": "S"}, {}),
    "openai": ({"prompt_cache_key": "S"}, {}),
    "dynamo header": ({}, {"x-dynamo-session-id": "S"}),
    "dynamo body": ({"nvext": {"agent_context": {"session_id": "S"}, "agent_hints": {"priority": 2}}}, {}),
    "thunderagent": ({"program_id": "S"}, {}),
}


def test_hints_reach_the_scheduler_on_every_api_and_from_every_stack(server: LiveServer, arrivals_file: Path) -> None:
    expected: list[str] = []
    for path, body in BODIES.items():
        for carrier, (fields, headers) in CARRIERS.items():
            session = f"{path}:{carrier}".replace(" ", "_")
            named_fields = json.loads(json.dumps(fields).replace('"S"', json.dumps(session)))
            named_headers = dict.fromkeys(headers, session)
            is_streaming = carrier == "header"
            request = {"model": server.model, **body, **named_fields, **({"stream": True} if is_streaming else {})}
            status, answer = server.post(path, request, named_headers)
            assert status == 200, f"{path} {carrier}: {answer}"
            expected.append(session)
    arrived = [json.loads(line) for line in arrivals_file.read_text().splitlines()]
    arrived = [request for request in arrived if request["hints"]][-len(expected) :]
    assert [request["session_id"] for request in arrived] == expected
    assert [request["hints"]["session"] for request in arrived] == expected
    own = [request["hints"] for request in arrived if request["session_id"].endswith("body_object")]
    assert [(hints["turn"], hints["role"], hints["tool"]) for hints in own] == [(3, "seeker", "search")] * len(BODIES)
    dynamo = [request["hints"] for request in arrived if request["session_id"].endswith("dynamo_body")]
    assert [hints["priority"] for hints in dynamo] == [2] * len(BODIES)
