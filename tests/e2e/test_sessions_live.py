"""Sessions as the live server sees them: recognised by content, diagnosed, counted, recorded."""

from __future__ import annotations

import itertools
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from agentinfer import cli
from tests.live_server import LiveServer
from tests.recorded_turns import wait_for_turns

pytestmark = pytest.mark.e2e

_numbers = itertools.count()

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call>'


def unique(text: str) -> str:
    """`text` made unlike that of any other test, so that no session of another test is continued."""
    return f"{text} (case {next(_numbers)} of {time.time_ns()})"


def newest_session(server: LiveServer) -> dict[str, Any]:
    listed = server.get("/agentinfer/sessions")["sessions"]
    newest = max(listed, key=lambda session: session.get("last_seen_unix_s", 0))
    return server.get(f"/agentinfer/sessions/{newest['id']}")


def causes(session: dict[str, Any]) -> list[str]:
    return [turn["prefix"]["cause"] for turn in session["recent_turns"]]


def run_turns(server: LiveServer, system: list[str], turns: int, **fields: Any) -> dict[str, Any]:
    """An agent of `turns` turns whose system message in turn i is `system[i % len(system)]`."""
    history: list[dict[str, Any]] = [{"role": "user", "content": unique("Tell me of lakes. " * 12)}]
    for turn in range(turns):
        messages = [{"role": "system", "content": system[turn % len(system)]}, *history]
        reply = server.chat(messages, max_tokens=6, **fields)["choices"][0]["message"]
        history += [{"role": "assistant", "content": reply["content"]}, {"role": "user", "content": f"More, {turn}."}]
    return newest_session(server)


def test_turns_of_a_conversation_are_one_session_and_hit_their_prefix(server: LiveServer) -> None:
    session = run_turns(server, ["You are helpful."], turns=4)
    assert session["inferred"] is True
    assert session["turns"] == 4
    assert causes(session) == ["first_turn", "hit", "hit", "hit"]
    later = session["recent_turns"][1:]
    assert all(turn["cached_tokens"] > 0.7 * turn["prompt_tokens"] for turn in later)


def test_streaming_turns_are_followed_like_whole_ones(server: LiveServer) -> None:
    user = {"role": "user", "content": unique("Name a river.")}
    body = {"model": server.model, "messages": [user], "max_tokens": 6, "temperature": 0, "stream": True}
    status, raw = server.post("/v1/chat/completions", body)
    assert status == 200
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    server.chat([user, {"role": "assistant", "content": text}, {"role": "user", "content": "Another."}], max_tokens=4)
    session = newest_session(server)
    assert session["turns"] == 2
    assert causes(session) == ["first_turn", "hit"]
    assert session["recent_turns"][0]["ttft_s"] < session["recent_turns"][0]["latency_s"]


def test_a_clock_in_the_system_prompt_is_named_with_its_characters(server: LiveServer) -> None:
    clocks = ["You are helpful. The time is 12:00:01.", "You are helpful. The time is 12:00:07."]
    session = run_turns(server, clocks, turns=2)
    finding = session["recent_turns"][1]["prefix"]
    assert finding["cause"] == "system_changed"
    assert finding["message_index"] == 0
    assert finding["looks_like"] == "timestamp"
    assert "12:00:01" in finding["before"]
    assert "12:00:07" in finding["now"]
    assert finding["tokens_lost"] > 50
    logged = [line for line in server.log.read_text().splitlines() if f"session {session['id']} turn" in line]
    assert len(logged) == 1
    assert "system changed at message 0" in logged[0]
    assert 'agentinfer_turn_prefix_total{cause="system_changed"}' in server.get("/metrics")


def test_an_evicted_prefix_is_told_from_a_changed_one(server: LiveServer) -> None:
    user = {"role": "user", "content": unique("Describe the sea at length. " * 20)}
    reply = server.chat([user], max_tokens=4)["choices"][0]["message"]["content"]
    status, answer = server.post("/flush_cache", b"")
    assert status == 200, answer
    server.chat([user, {"role": "assistant", "content": reply}, {"role": "user", "content": "Go on."}], max_tokens=4)
    finding = newest_session(server)["recent_turns"][1]["prefix"]
    assert finding["cause"] == "evicted"


def test_the_tool_a_turn_calls_is_read_and_its_gap_measured(server: LiveServer, capsys) -> None:
    user = {"role": "user", "content": unique("Search for me.")}
    forced = {"forced": {"text": CALL}}
    reply = server.chat([user], max_tokens=64, tools=TOOLS, agentinfer=forced)["choices"][0]["message"]
    waiting = newest_session(server)
    assert waiting["state"] == "in_tool"
    assert waiting["tools"] == ["search"]
    time.sleep(0.3)
    result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "Nothing found."}
    server.chat([user, reply, result], max_tokens=4, tools=TOOLS)
    turn = newest_session(server)["recent_turns"][1]
    assert 0.3 <= turn["tool_gap_s"] < 10
    assert server.get("/agentinfer/status")["tools"]["search"]["count"] >= 1
    assert cli.main(["status", "--url", server.url]) == 0
    [row] = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  search ")]
    assert int(row[1]) >= 1, "gaps"
    assert row[-1] == "ago"
    assert 'agentinfer_tool_gap_seconds_count{tool="search"}' in server.get("/metrics")


def test_a_sub_agent_is_a_child_of_the_session_whose_tool_call_made_it(server: LiveServer) -> None:
    task = unique("Find every lake in Finland and report their depths")
    call = f"<tool_call>\n{json.dumps({'name': 'delegate', 'arguments': {'task': task}})}\n</tool_call>"
    parent_user = {"role": "user", "content": unique("Be a planner.")}
    server.chat(
        [parent_user],
        max_tokens=128,
        tools=[{"type": "function", "function": {"name": "delegate", "parameters": {"type": "object"}}}],
        agentinfer={"forced": {"text": call}},
    )
    parent = newest_session(server)
    server.chat([{"role": "system", "content": "You seek."}, {"role": "user", "content": task}], max_tokens=4)
    assert newest_session(server)["parent"] == parent["id"]


def test_closing_a_session_and_asking_for_an_unknown_one(server: LiveServer) -> None:
    server.chat([{"role": "user", "content": "Hi."}], max_tokens=1, agentinfer={"session": "to-close"})
    request = urllib.request.Request(f"{server.url}/agentinfer/sessions/to-close", method="DELETE")
    with urllib.request.urlopen(request, timeout=10) as response:
        assert json.loads(response.read()) == {"id": "to-close", "state": "finished"}
    assert server.get("/agentinfer/sessions/to-close")["state"] == "finished"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get("/agentinfer/sessions/never-seen")
    with pytest.raises(urllib.error.HTTPError, match="422"):
        server.get("/agentinfer/sessions?state=dancing")


def test_status_counts_what_was_served(server: LiveServer) -> None:
    before = server.get("/agentinfer/status")
    answer = server.chat([{"role": "user", "content": unique("Hello.")}], max_tokens=3)
    after = server.get("/agentinfer/status")
    assert after["turns"]["ok"] == before["turns"]["ok"] + 1
    assert after["tokens"]["completion"] - before["tokens"]["completion"] == answer["usage"]["completion_tokens"]
    assert after["model"] == server.model
    assert after["features"] == ["sessions", "record", "forced_replay"]


def test_the_record_holds_every_turn_with_its_counts(server: LiveServer, record_file: Path) -> None:
    name = unique("recorded").replace(" ", "-")
    user = {"role": "user", "content": unique("Count to two.")}
    first = server.chat([user], max_tokens=5, agentinfer={"session": name})
    reply = first["choices"][0]["message"]["content"]
    follow_up = [user, {"role": "assistant", "content": reply}, {"role": "user", "content": "Again."}]
    second = server.chat(follow_up, max_tokens=5, agentinfer={"session": name})
    turns = wait_for_turns(record_file, name, 2)
    assert [list(turn.messages) for turn in turns] == [[user], follow_up]
    assert turns[0].reply is not None
    assert turns[0].reply["content"] == reply
    assert [turn.prompt_tokens for turn in turns] == [body["usage"]["prompt_tokens"] for body in (first, second)]
    assert turns[1].cached_tokens is not None
    assert turns[1].cached_tokens > 0
    lines = [json.loads(line) for line in record_file.read_text().splitlines()]
    of_second = [line for line in lines if line.get("session") == name][1]
    assert (of_second["kept"], len(of_second["messages"])) == (2, 1)
