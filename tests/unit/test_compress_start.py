"""Compression as the server starts, and the routes of what it took away."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from agentinfer.config import CompressionConfig
from agentinfer.errors import ConfigError
from agentinfer.runtime.compression.distilling import Distillers
from agentinfer.runtime.compression.routes import memory_routes
from agentinfer.runtime.compression.template import note_may_be_a_step
from agentinfer.runtime.routes import unknown_session
from tests.compress_server import Server


def joined(messages: Sequence[dict[str, Any]]) -> str:
    return "\n".join(str(message["content"]) for message in messages)


def alternating(messages: Sequence[dict[str, Any]]) -> str:
    roles = [message["role"] for message in messages]
    if any(first == second for first, second in itertools.pairwise(roles)):
        raise ValueError("roles must alternate")
    return joined(messages)


def test_a_template_that_wants_roles_to_alternate_gets_notes_behind_results() -> None:
    assert note_may_be_a_step(joined) is True
    assert note_may_be_a_step(alternating) is False


def test_a_template_without_tool_results_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="renders no tool results"):
        note_may_be_a_step(lambda messages: joined([each for each in messages if each["role"] != "tool"]))


def test_a_model_that_is_no_address_is_refused_with_what_is_expected() -> None:
    with pytest.raises(ConfigError, match="expected extractive, engine or an address"):
        Distillers(CompressionConfig(compress_model="gpt"))


def client_of(server: Server) -> TestClient:
    app = FastAPI()
    app.include_router(memory_routes(lambda: server.compression, lambda name: server.table.get(name) is not None))
    return TestClient(app)


def test_the_memory_of_a_session_is_served_with_each_result_word_for_word(monkeypatch) -> None:
    server = Server(monkeypatch)
    asyncio.run(server.turns(6))
    client = client_of(server)
    listed = client.get("/agentinfer/sessions/s/memory").json()
    assert listed["taken"][0] == {"id": "o3", "tool": "look", "chars": len(server.messages[3]["content"])}
    assert client.get("/agentinfer/sessions/s/memory/o3").json()["text"] == server.messages[3]["content"]
    missing = client.get("/agentinfer/sessions/s/memory/o999")
    assert (missing.status_code, "has no o999. Known: o3" in missing.json()["detail"]) == (404, True)
    assert client.get("/agentinfer/sessions/s/memory/3").status_code == 422


def test_a_session_of_which_nothing_was_taken_has_an_empty_memory(monkeypatch) -> None:
    server = Server(monkeypatch)
    asyncio.run(server.turn())
    client = client_of(server)
    assert client.get("/agentinfer/sessions/s/memory").json()["taken"] == []
    missing = client.get("/agentinfer/sessions/s/memory/o3")
    assert (missing.status_code, "nothing was taken" in missing.json()["detail"]) == (404, True)


@pytest.mark.parametrize("path", ["memory", "memory/o3"])
def test_the_memory_of_an_unknown_session_is_not_found(path: str, monkeypatch) -> None:
    missing = client_of(Server(monkeypatch)).get(f"/agentinfer/sessions/a/b/c/{path}")
    assert missing.status_code == 404
    assert missing.json()["detail"] == unknown_session("a/b/c")


def test_a_memory_that_outlived_its_session_is_still_served(monkeypatch) -> None:
    server = Server(monkeypatch)
    asyncio.run(server.turns(6))
    server.compression._sessions.clear()
    client = TestClient(app := FastAPI())
    app.include_router(memory_routes(lambda: server.compression, lambda name: False))
    assert client.get("/agentinfer/sessions/s/memory").json()["taken"]
