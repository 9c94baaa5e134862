"""The check on a real engine: held to its grammar, read with its probability, calibrated over recorded steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentinfer.cli import main
from agentinfer.collab_lang import threshold
from agentinfer.collab_lang.check_request import check_body, read_answer
from agentinfer.collab_lang.settings import Check, CollabSettings
from tests.live_server import LiveServer

pytestmark = pytest.mark.e2e
TOOLS = [{"type": "function", "function": {"name": "read", "description": "Reads a file.", "parameters": {}}}]
TASK = {"role": "user", "content": "Which port does the server of this project listen on?"}


def call(place: int) -> dict[str, Any]:
    function = {"name": "read", "arguments": json.dumps({"path": f"conf/part{place}.yaml"})}
    return {"id": f"call_{place}", "type": "function", "function": function}


def session(name: str, num_steps: int) -> dict[str, Any]:
    """Steps that look into one file after another; every other one says that it repeats itself."""
    messages: list[dict[str, Any]] = [TASK]
    for step in range(num_steps):
        said = f"I read part {step} of {name}." if step % 2 else f"I do not know where {name} is. I try again."
        messages.append({"role": "assistant", "content": said, "tool_calls": [call(step)]})
        messages.append({"role": "tool", "tool_call_id": f"call_{step}", "content": f"workers: {step}"})
    return {"id": name, "messages": [*messages, {"role": "assistant", "content": "It is 8080."}], "tools": TOOLS}


def test_verdicts_of_a_live_engine_are_calibrated(server: LiveServer, tmp_path: Path, capsys: Any) -> None:
    trace, out, samples = tmp_path / "trace.jsonl", tmp_path / "threshold.json", tmp_path / "samples.json"
    trace.write_text("".join(json.dumps(session(name, 6)) + "\n" for name in ("north", "south", "east", "west")))
    flags = ["--base-url", server.url, "--trace", str(trace), "--target-rate", "0.25", "--check", "verdict"]
    assert main(["collab", "calibrate", *flags, "--out", str(out), "--json", str(samples)]) == 0
    found = threshold.read(out)
    assert (found.model, found.check, found.samples) == ("smollm2-135m", "verdict", 24)
    probabilities = [step["p_true"] for step in json.loads(samples.read_text())["steps"]]
    assert all(0.0 < each < 1.0 for each in probabilities)
    assert len(set(probabilities)) > 4, "steps differ, and so do their probabilities"
    assert found.rate == threshold.share_under(probabilities, found.value)
    # A small model's probabilities come in few steps, so a quarter may not be there to be had.
    assert 0.0 < found.rate <= 0.5
    assert "P(TRUE) of 24 steps, verdict check, smollm2-135m:" in capsys.readouterr().out


@pytest.mark.parametrize("has_call", [True, False], ids=["a call that runs", "words alone"])
def test_a_block_is_whole_with_a_reason_and_a_probability(server: LiveServer, has_call: bool) -> None:
    settings = CollabSettings(check=Check.BLOCK)
    reply = {"role": "assistant", "content": "I look into the configuration first."}
    if has_call:
        reply |= {"tool_calls": [call(0)]}
    status, answer = server.post(
        "/v1/chat/completions", {"model": server.model, **check_body([TASK], reply, settings, TOOLS)}
    )
    assert status == 200, answer
    judgement = read_answer(answer, settings)
    assert judgement is not None, answer["choices"][0]["message"]["content"]
    assert 10 <= len(judgement.reason.split()) <= 20
    assert judgement.p_true is not None
    assert 0.0 < judgement.p_true < 1.0


def test_a_check_computes_its_question_and_what_stands_for_results(server: LiveServer) -> None:
    settings = CollabSettings(check=Check.VERDICT)
    long_task = {"role": "user", "content": "The port of the server, please. " + "It is in one of the files. " * 60}
    turn = server.chat([long_task], max_tokens=16, tools=TOOLS)
    reply = turn["choices"][0]["message"]
    body = check_body([long_task], {"role": "assistant", "content": reply["content"]}, settings, TOOLS)
    status, answer = server.post("/v1/chat/completions", {"model": server.model, **body})
    assert status == 200, answer
    usage = answer["usage"]
    prompt_tokens = turn["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] == 1
    assert usage["prompt_tokens_details"]["cached_tokens"] >= prompt_tokens - 1
    assert usage["prompt_tokens"] - prompt_tokens < 150, "the reply and the question"
