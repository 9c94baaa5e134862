"""Compression beside the turns: what a turn is given, and that no failure costs one anything."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agentinfer.compress.distiller import Assignment
from agentinfer.compress.note import Note
from agentinfer.runtime.compression.door import AppDoor, Asked, DoorError
from agentinfer.runtime.prefill.engine import Prompt, wanted_prompt
from agentinfer.runtime.turns import current_turn
from tests.agent_sessions import assistant, call, user
from tests.compress_server import Noting, Server

# -- the service, over an app of a few lines ---------------------------------------------------------------------------


def test_a_turn_gets_the_shortened_context_with_its_own_length_and_everything_else_as_it_came(monkeypatch) -> None:
    server = Server(monkeypatch)

    async def story() -> None:
        await server.turns(6)
        await server.turn(tools=[{"type": "function"}], n=2, seed=7)

    asyncio.run(story())
    headers, raw = server.got[-1]
    assert headers["content-length"] == str(len(raw))
    assert headers["authorization"] == "Bearer of it"
    body = json.loads(raw)
    assert (body["tools"], body["n"], body["seed"]) == ([{"type": "function"}], 2, 7)
    assert body["messages"][3]["content"] == "[o3]"
    assert body["messages"][-1] == server.messages[-3]
    assert any("fact 3" in str(each["content"]) for each in body["messages"])
    assert server.jobs["swapped"] >= 1
    view = server.table.get("s")
    assert view is not None
    assert view.notes["recent_turns"][-1]["composed"] is True
    assert server.computed


def test_what_fails_before_the_engine_leaves_the_clients_own_bytes(monkeypatch) -> None:
    server = Server(monkeypatch)

    def broken(*_: Any) -> bytes:
        raise RuntimeError("broken")

    monkeypatch.setattr(server.compression, "body_for", broken)
    sent = asyncio.run(server.turns(6))
    assert [raw for _, raw in server.got] == sent


def test_what_fails_after_a_turn_changes_no_answer(monkeypatch) -> None:
    server = Server(monkeypatch)

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(server.compression, "turn_ended", broken)
    sent = asyncio.run(server.turns(6))
    assert [raw for _, raw in server.got] == sent
    assert server.table.counts()["running"] == 0


async def _raises(assignment: Assignment) -> Note:
    raise OSError("killed")


async def _hangs(assignment: Assignment) -> Note:
    await asyncio.sleep(60)
    return Note()


async def _says_nothing(assignment: Assignment) -> Note:
    return Note()


@pytest.mark.parametrize(
    ("does", "end"),
    [(_raises, "failed"), (_hangs, "failed"), (_says_nothing, "empty")],
    ids=["killed", "hangs", "says nothing"],
)
def test_a_compressor_that_does_not_answer_leaves_the_session_as_it_is(does, end: str, monkeypatch) -> None:
    server = Server(monkeypatch, Noting(does), distil_timeout_s=0.05)
    sent = asyncio.run(server.turns(5))
    assert [raw for _, raw in server.got] == sent
    assert set(server.jobs) == {end}


def test_turns_go_on_while_the_compressor_works(monkeypatch) -> None:
    server = Server(monkeypatch, Noting(_hangs))

    async def story() -> list[bytes]:
        sent = [await server.turn() for _ in range(6)]
        server.compression.close()
        return sent

    sent = asyncio.run(story())
    assert [raw for _, raw in server.got] == sent
    assert server.compression.status()["sessions"]["distilling"] == 1


def test_a_session_that_is_over_stops_its_job_and_is_forgotten(monkeypatch) -> None:
    server = Server(monkeypatch, Noting(_hangs))

    async def story() -> None:
        for _ in range(5):
            await server.turn()
        server.table.close("s")
        await server.settle()

    asyncio.run(story())
    assert server.jobs == {"cancelled": 1}
    assert server.compression.status()["sessions"] == {"distilling": 0, "warming": 0, "ready": 0}
    assert not server.compression._sessions


def test_no_state_of_a_request_leaks_into_what_runs_beside_it(monkeypatch) -> None:
    bound: list[object] = []

    async def look(assignment: Assignment) -> Note:
        bound.append(current_turn.get())
        return Note()

    asyncio.run(Server(monkeypatch, Noting(look)).turns(4))
    assert bound
    assert set(bound) == {None}


def test_a_kept_request_holds_no_messages_and_only_the_headers_its_rights_hang_on() -> None:
    scope = {"type": "http", "headers": [(b"authorization", b"x"), (b"cookie", b"y")], "state": {}, "app": "app"}
    asked = Asked.of(scope, {"messages": [1], "tools": [2], "n": 3, "stream": True, "agentinfer": {}})
    assert asked.fields == {"tools": [2]}
    assert asked.scope == {"type": "http", "headers": [(b"authorization", b"x")], "app": "app"}


def test_an_app_that_refuses_the_request_is_quoted() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"who are you"})

    asked = Asked({}, {"headers": []})
    with pytest.raises(DoorError, match="did not reach the engine: who are you"):
        asyncio.run(AppDoor(app).prompt(asked, [user("hi")]))


def test_a_prompt_ends_where_the_next_message_begins() -> None:
    asked_for: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        messages = json.loads((await receive())["body"])["messages"]
        asked_for.append(messages[-1])
        wanted = wanted_prompt.get()
        assert wanted is not None
        text = "".join(f"<{each['role']}>{each['content']}" for each in messages) + "<assistant>"
        wanted.prompt = Prompt(tuple(text.encode()), {}, None)

    def prompt_after(reply: dict[str, Any]) -> str:
        found = asyncio.run(AppDoor(app).prompt(Asked({}, {"headers": []}), [user("hi"), reply]))
        return bytes(found.ids).decode()

    assert prompt_after(assistant("see", call("c1"))) == "<user>hi<assistant>see<tool>"
    assert [each["tool_call_id"] for each in asked_for] == ["c1", "c1"]
    assert prompt_after(assistant("done")) == "<user>hi<assistant>done<user>"
