"""Model `collab` with two real engines under one supervisor: turns, checks, hand-overs, an engine that is killed."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.live_server import LiveServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FLAGS = (
    "--model-path", "embedded:smollm2-135m", "--small-model-path", "embedded:gemma3-270m",
    "--max-total-tokens", "8192", "--max-running-requests", "8", "--agentinfer-forced-replay",
)  # fmt: skip
TASK = "Find where the parser drops a newline. " + " ".join(
    f"File number {number} has {number * 7} lines and is named after its first function." for number in range(30)
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "The text of a file",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        },
    }
]
CALL = '<tool_call>\n{"name": "look", "arguments": {"path": "parser.py"}}\n</tool_call>'


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    live = LiveServer(log=tmp_path_factory.mktemp("pair") / "log", flags=FLAGS, model="collab")
    try:
        yield live.start(timeout_s=600)
    finally:
        live.stop()


def until(holds: Callable[[], Any], timeout_s: float = 120.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.2)
    return found


def turn(live: LiveServer, session: str, history: list[dict[str, Any]], text: str, **fields: Any) -> dict[str, Any]:
    """A turn in which the model is made to say `text`; what the response says of it. The reply joins the history."""
    own = {"session": session, "forced": {"text": text}}
    body = live.chat(history, max_tokens=64, agentinfer=own, **fields)
    history.append(body["choices"][0]["message"])
    return dict(body["agentinfer"]["collab"])


def is_idle(collab: dict[str, Any]) -> bool:
    return not (collab["is_checking"] or collab["is_warming"])


def test_checks_give_verdicts_and_a_switch_finds_its_prompt_computed(pair: LiveServer) -> None:
    history = [{"role": "user", "content": TASK}]
    seen = []
    for step in range(3):
        told = turn(
            pair, "warm", history, "I look at the parser first, since that is where the text is cut.", tools=TOOLS
        )
        seen.append((told["model"], told["reason"]))
        # While the tool runs: the step is judged, and the other model reads on.
        if step < 2:
            until(lambda: is_idle(pair.get("/agentinfer/sessions/warm")["collab"]))
            history.append({"role": "user", "content": "It has 210 lines. Go on."})
    assert seen == [("large", "opening"), ("large", "warm_up"), ("small", "warm_up_done")]
    transitions = pair.get("/agentinfer/collab/sessions/warm")["transitions"]
    assert len(transitions) == 2
    for row in transitions:
        assert row["verdict"] in ("progress", "no_progress")
        assert 0.0 <= row["p_true"] <= 1.0
        assert 10 <= len(row["why"].split()) <= 20
    status = pair.get("/agentinfer/status")["collab"]
    assert status["switches"] == 1
    assert status["switch_unseen_tokens"] > 500
    assert status["switch_prefilled_share"] >= 0.9


def test_tools_are_called_by_either_model_and_streamed_whole(pair: LiveServer) -> None:
    for model in ("large", "small"):
        body = {
            "model": "collab",
            "messages": [{"role": "user", "content": "Look at parser.py"}],
            "tools": TOOLS,
            "stream": True,
            "agentinfer": {"forced": {"text": CALL}, "collab": {"model": model}},
        }
        chunks = list(streamed(pair, body))
        pieces = [
            piece
            for chunk in chunks
            for choice in chunk["choices"]
            for piece in choice["delta"].get("tool_calls") or ()
        ]
        arguments = "".join(piece["function"].get("arguments") or "" for piece in pieces)
        assert json.loads(arguments) == {"path": "parser.py"}, model
        assert chunks[-1]["agentinfer"]["collab"]["model"] == model
        assert chunks[-1]["agentinfer"]["collab"]["reason"] == "pinned"


def test_an_engine_killed_in_the_middle_of_its_reply_loses_nothing(pair: LiveServer) -> None:
    body = {
        "model": "collab",
        "messages": [{"role": "user", "content": "Count from one to a hundred in words."}],
        "stream": True,
        "max_tokens": 60,
        "ignore_eos": True,
        "temperature": 0,
        "agentinfer": {"session": "killed"},
        "stream_options": {"include_usage": True},
    }
    chunks = []
    for chunk in streamed(pair, body):
        chunks.append(chunk)
        if len(chunks) == 8:
            kill_engine(pair, "large")
    texts = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    reasons = [
        choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice.get("finish_reason")
    ]
    assert reasons == ["length"]
    assert len("".join(texts)) > len("".join(texts[:8]))
    told = chunks[-1]["agentinfer"]["collab"]
    assert (told["model"], told["reason"], told["taken_up_mid_reply"]) == ("small", "model_unavailable", True)
    assert len({chunk["id"] for chunk in chunks}) == 1
    # Nobody has to wait for the dead one: the next turns are the other model's, until it is back.
    assert turn(pair, "next", [{"role": "user", "content": "Hello"}], "Hello.")["model"] == "small"
    assert pair.get("/health")["engines"] == {"large": "down", "small": "up"}
    until(lambda: pair.get("/health")["engines"]["large"] == "up", 300)
    assert turn(pair, "back", [{"role": "user", "content": "Hello"}], "Hello.")["model"] == "large"


def streamed(live: LiveServer, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks as they come; [DONE] must be the last event."""
    request = urllib.request.Request(
        f"{live.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        for line in response:
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    raise AssertionError("the stream has no end")


def choices_of(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice for chunk in chunks for choice in chunk["choices"]]


def kill_engine(live: LiveServer, role: str) -> None:
    """As the kernel does it when memory runs out: the engine's processes, all at once and without a word."""
    assert live.process is not None
    port = live.get("/agentinfer/status")["engines"][role]["base_url"].rpartition(":")[2]
    for child in psutil.Process(live.process.pid).children():
        if port in child.cmdline():
            for process in child.children(recursive=True):
                process.kill()
            return
    raise AssertionError(f"no engine on port {port}")


def test_unmodified_clients(pair: LiveServer, tmp_path: Path) -> None:
    from tests.e2e.test_clients import run_client

    seen = run_client("openai_client.py", pair.url, "collab")
    assert seen["plain"]
    assert seen["streamed"] == seen["plain"]
    assert seen["call"] == seen["streamed_call"] == {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert seen["call_finish"] == "tool_calls"
    assert seen["response"]
    assert seen["models"][0] == "collab"
    assert seen["malformed_hint"]["status"] == 400
    assert pair.get("/agentinfer/sessions/weather-agent")["turns"] == 3

    done = run_client("mini_swe_agent.py", pair.url, "collab", tmp_path)
    assert done == {"exit_status": "Submitted", "submission": "step\nstep\nstep\n", "calls": 3}
    # Its three requests carried no session id of any kind: they were recognised by what they said.
    newest = pair.get("/agentinfer/sessions")["sessions"][0]
    assert (newest["source"], newest["turns"]) == ("inferred", 3)
    assert pair.get(f"/agentinfer/sessions/{newest['id']}")["collab"]["last_speaker"] == "small"
