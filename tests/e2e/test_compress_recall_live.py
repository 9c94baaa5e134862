"""Reading again what was taken out, on a live server: behind the API, and in an agent's own loop."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.live_server import COMMON_FLAGS, LiveServer

pytestmark = pytest.mark.e2e

LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
FLAGS = (
    "--agentinfer-forced-replay",
    "--enable-compress",
    "--agentinfer-compress-recall",
    *("--agentinfer-compress-threshold-tokens", "500", "--agentinfer-compress-keep-steps", "2"),
)
SESSION = "reading-again"
ROOT = Path(__file__).parents[2]


def forced(name: str, **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class Agent:
    """A client that knows of one tool, `look`, and sends its whole history with each turn."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.messages: list[dict[str, Any]] = [
            {"role": "user", "content": "Find out what is the matter with the harbour."}
        ]

    def request(self, said: str, **fields: Any) -> dict[str, Any]:
        own = {"session": SESSION, "forced": {"text": said}}
        asked = {"model": self.server.model, "messages": self.messages, "tools": [LOOK], "agentinfer": own}
        return {**asked, "max_tokens": 8, "temperature": 0, **fields}

    def turn(self, said: str, result: str = "nothing") -> dict[str, Any]:
        """One turn whose model begins by saying this; the server's answer. Its tool has answered when this returns."""
        status, body = self.server.post("/v1/chat/completions", self.request(said))
        assert status == 200, body
        message = body["choices"][0]["message"]
        calls = message["tool_calls"] or []
        assert {each["function"]["name"] for each in calls} <= {"look"}
        self.messages.append({name: message[name] for name in ("role", "content", "tool_calls") if message[name]})
        self.messages += [{"role": "tool", "tool_call_id": each["id"], "content": result} for each in calls]
        if not calls:
            self.messages.append({"role": "user", "content": "Go on."})
        self.settle()
        return body

    def settle(self) -> None:
        deadline_s = time.monotonic() + 60
        while any(
            self.server.get("/agentinfer/status")["compression"]["sessions"][state]
            for state in ("distilling", "warming")
        ):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    @property
    def seen(self) -> dict[str, Any]:
        """What the server tells of the last turn."""
        turns: list[dict[str, Any]] = self.server.get(f"/agentinfer/sessions/{SESSION}")["recent_turns"]
        return turns[-1]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(log=tmp_path_factory.mktemp("recall") / "log", flags=(*COMMON_FLAGS, *FLAGS)) as server:
        yield server


def test_what_was_taken_out_is_read_again_within_a_turn(live: LiveServer) -> None:
    agent = Agent(live)
    first = "/srv/harbour/4711.log says 815. " + "meadow window tunnel basket lantern " * 20
    for number in range(4):
        agent.turn(forced("look"), first if number == 0 else first.replace("4711", str(4712 + number)))
    agent.turn(forced("look"))
    agent.turn(forced("look"))
    assert agent.seen["composed"] is True
    assert agent.seen["cached_tokens"] >= 0.95 * agent.seen["prompt_tokens"], "the tool was in what was computed ahead"
    assert live.get(f"/agentinfer/sessions/{SESSION}/memory/o2")["text"] == first

    read = agent.turn(forced("recall", id="o2"))
    recalled = agent.seen["recalled"]
    assert recalled["ids"] == ["o2"]
    assert recalled["prompt_tokens"] >= agent.seen["prompt_tokens"] + len(first) // 6
    assert recalled["cached_tokens"] >= 0.95 * agent.seen["prompt_tokens"]
    assert read["usage"]["prompt_tokens"] == agent.seen["prompt_tokens"] + recalled["prompt_tokens"]
    cached = read["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == agent.seen["cached_tokens"] + recalled["cached_tokens"]
    assert all("4711" not in str(message) for message in agent.messages[3:])

    agent.turn(forced("look"))
    assert agent.seen["cached_tokens"] >= recalled["prompt_tokens"], "what was recalled is still in the prompt"

    both = agent.turn(forced("look") + forced("recall", id="o4"))
    assert both["choices"][0]["finish_reason"] == "tool_calls"
    before = agent.seen["prompt_tokens"]
    agent.turn(forced("look"))
    assert agent.seen["prompt_tokens"] > before + len(first) // 6, "its answer stands beside the client's"

    status, raw = live.post(
        "/v1/chat/completions",
        agent.request(forced("recall", id="o2"), stream=True, max_tokens=40, stream_options={"include_usage": True}),
    )
    assert status == 200
    assert "recall" not in raw
    assert raw.rstrip().endswith("data: [DONE]")
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    assert len({event["id"] for event in events}) == 1
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert any(delta.get("content") or delta.get("tool_calls") for delta in deltas), "the model went on"
    again = agent.seen["recalled"]
    assert again["ids"] == ["o2"]
    assert events[-1]["usage"]["prompt_tokens"] == agent.seen["prompt_tokens"] + again["prompt_tokens"]
    status_of_recall = live.get("/agentinfer/status")["compression"]["recall"]
    assert (status_of_recall["answered"], status_of_recall["refused"]) == (3, 0)


def test_the_example_loop_shortens_its_memory_and_reads_again(
    live: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loop as it is; only what the model says is forced, and its session is none of the server's to shorten."""
    (tmp_path / "a.txt").write_text("port 8417 " + "meadow window tunnel basket lantern " * 20)
    said = [*[forced("read", path="a.txt")] * 6, forced("recall", id="o3"), "It is 8417."]
    bodies: list[dict[str, Any]] = []
    answers = iter(said)
    post = aiohttp.ClientSession.post

    def forcing(self: aiohttp.ClientSession, url: str, json: dict[str, Any]) -> Any:
        bodies.append(json)
        hints = {"session": f"loop-{len(bodies)}", "forced": {"text": next(answers)}}
        return post(self, url, json={**json, "agentinfer": hints})

    spec = importlib.util.spec_from_file_location("compress_loop", ROOT / "examples" / "compress_loop.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(aiohttp.ClientSession, "post", forcing)
    monkeypatch.setattr("sys.argv", ["loop", "Which port?", "--url", f"{live.url}/v1", "--threshold-tokens", "500"])
    asyncio.run(example.main())
    *turns, answer = capsys.readouterr().out.strip().splitlines()
    assert answer == "It is 8417."
    assert len(turns) == len(said)
    tokens = [int(line.split()[-2]) for line in turns]
    assert min(tokens[4:]) < max(tokens), "shorter than it was, by the server's own count"
    shortened = [message["content"] for message in bodies[-1]["messages"] if message["role"] == "tool"]
    assert "[o3]" in shortened
    assert shortened[-1] == (tmp_path / "a.txt").read_text(), "recalled as it was"
