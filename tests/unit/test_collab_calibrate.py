"""`agentinfer collab`: checks over recorded steps on an engine in this process, what is printed and written, errors."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentinfer.cli import main
from agentinfer.collab_lang import threshold
from agentinfer.collab_lang.progress import QUESTION, QUESTION_FOR_VALUE
from agentinfer.commands.collab.cli import histogram
from agentinfer.commands.collab.judging import steps_of
from agentinfer.replay import read_trace

Script = Callable[[dict[str, Any]], "tuple[int, Any] | None"]
REASON = "it found the file that the task asks for, at once"


def completion(p_true: float, is_block: bool, has_alternatives: bool = True) -> dict[str, Any]:
    """What SGLang answers: the value in tokens, the list of alternatives filled up with forbidden ones."""
    word = "TRUE" if p_true >= 0.5 else "FALSE"
    alternatives = [("TRUE", math.log(p_true)), ("FALSE", math.log(1 - p_true)), ("FABLE", -3.4e38)]
    listed = [{"token": token, "logprob": logprob} for token, logprob in alternatives] if has_alternatives else []
    value = {"token": word, "logprob": -0.1, "top_logprobs": listed}
    before = f"===PROGRESS===\n<reason> {REASON} </reason>\n<value>"
    after = "</value>\n===END_PROGRESS==="
    if not is_block:
        message, rows = word, [value]
    else:
        message = f"{before}{word}{after}"
        rows = [{"token": before, "logprob": 0.0}, {**value, "token": word}, {"token": after, "logprob": 0.0}]
    return {"choices": [{"message": {"role": "assistant", "content": message}, "logprobs": {"content": rows}}]}


class Engine:
    """P(TRUE) of a step is the number that its reply ends with, over 100. `script` may answer in its place."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.script: Script = lambda body: None
        self.live = self.most_live = 0
        self.together: threading.Barrier | None = None
        self._lock = threading.Lock()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, {"data": [{"id": "/models/small"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                engine.keys.add(self.headers.get("authorization"))
                self.answer(*engine.chat(body))

            def answer(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        with self._lock:
            self.bodies.append(body)
            self.live += 1
            self.most_live = max(self.most_live, self.live)
        if self.together is not None:
            self.together.wait(timeout=20)
        reply = next(each for each in reversed(body["messages"]) if each["role"] == "assistant")
        p_true = int(reply["content"].split()[-1]) / 100
        answer = self.script(body) or (200, completion(p_true, is_block=body["max_tokens"] > 1))
        with self._lock:
            self.live -= 1
        return answer


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def recorded(name: str, num_steps: int, first: int) -> dict[str, Any]:
    """A session whose replies end with `first`, `first` + 1, ... and call a tool, but for the last."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Find it."}]
    for step in range(num_steps):
        call = {"id": f"c{step}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        messages.append({"role": "assistant", "content": f"Step {first + step}", "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"c{step}", "content": "nothing"})
    return {"id": name, "messages": [*messages, {"role": "assistant", "content": "It is done. 99"}]}


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Forty steps to judge in four sessions; P(TRUE) from 0.10 to 0.49."""
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(recorded(f"s{place}", 10, 10 + 10 * place)) + "\n" for place in range(4)))
    return str(path)


def calibrate(engine: Engine, trace: str, out: Path, *more: str) -> int:
    flags = ["--base-url", engine.url + "/v1", "--trace", trace, "--target-rate", "0.2", "--out", str(out)]
    return main(["collab", "calibrate", *flags, *more])


@pytest.mark.parametrize(("check", "question"), [("block", QUESTION), ("verdict", QUESTION_FOR_VALUE)])
def test_the_file_has_the_threshold_that_the_probabilities_have(
    engine: Engine, trace: str, tmp_path: Path, capsys: Any, check: str, question: str
) -> None:
    out = tmp_path / "threshold.json"
    assert calibrate(engine, trace, out, "--check", check) == 0
    found = threshold.read(out)
    assert (found.model, found.check, found.samples, found.rate) == ("small", check, 40, 0.2)
    assert 0.17 < found.value < 0.18
    assert {each["messages"][-1]["content"] for each in engine.bodies} == {question}
    assert {each["model"] for each in engine.bodies} == {"/models/small"}
    printed = capsys.readouterr()
    assert "  0.1-0.2  10  ####" in printed.out
    assert "  0.5-0.6   0\n" in printed.out
    assert ["20.0%", "0.175", "20.0%", "10.5%", "to", "34.8%"] in [line.split() for line in printed.out.splitlines()]
    assert "a threshold of 0.5, what greedy decoding says: 100.0%" in printed.out
    assert "calibrate: 40/40 steps, " in printed.err


def test_steps_of_a_session_follow_each_other_and_sessions_run_beside_each_other(
    engine: Engine, trace: str, tmp_path: Path
) -> None:
    engine.together = threading.Barrier(2)
    assert calibrate(engine, trace, tmp_path / "out.json", "--parallel", "2") == 0
    assert engine.most_live == 2
    lengths: dict[str, list[int]] = {}
    for body in engine.bodies:
        lengths.setdefault(body["messages"][1]["content"], []).append(len(body["messages"]))
    assert all(each == sorted(each) for each in lengths.values())
    assert len(lengths) == 4


def test_a_sessions_last_step_is_not_judged_and_fewer_are_spread(trace: str) -> None:
    sessions = read_trace(trace).sessions
    every = steps_of(sessions, None)
    assert len(every) == 40
    assert all(step.turn is not step.session.turns[-1] for step in every)
    some = steps_of(sessions, 8)
    assert [each.session.id for each in some] == ["s0", "s0", "s1", "s1", "s2", "s2", "s3", "s3"]
    assert steps_of(sessions, 400) == every


def test_the_samples_are_written_in_the_traces_order_without_the_key(
    engine: Engine, trace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["agentinfer", "collab", "calibrate", "--api-key", "hidden", "--api-key=hidden"])
    samples = tmp_path / "samples.json"
    assert calibrate(engine, trace, tmp_path / "out.json", "--json", str(samples), "--api-key", "hidden") == 0
    assert engine.keys == {"Bearer hidden"}
    record = json.loads(samples.read_text())
    assert "hidden" not in samples.read_text()
    assert [each["p_true"] for each in record["steps"]] == [pytest.approx(place / 100) for place in range(10, 50)]
    assert record["steps"][11] == {"session": "s1", "turn": 1, "p_true": pytest.approx(0.21), "is_progress": False}
    assert record["trace"]["name"] == "trace.jsonl"


def test_steps_that_the_engine_refuses_are_counted_and_the_rest_is_fitted(
    engine: Engine, trace: str, tmp_path: Path, capsys: Any
) -> None:
    too_long = (400, {"message": "The input is longer than the model's context length"})
    engine.script = lambda body: too_long if len(body["messages"]) > 16 else None
    out = tmp_path / "out.json"
    assert calibrate(engine, trace, out) == 0
    assert threshold.read(out).samples == 28
    assert 'without a verdict: 12 refused, the first with: HTTP 400: {"message": "The input' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (lambda body: (200, completion(0.5, True, has_alternatives=False)), "without the log-probabilities"),
        (lambda body: (200, {"choices": []}), "0 of 40 steps have a verdict, expected at least 20: 40 answers not in"),
        (lambda body: (200, b"<html>"), "40 refused, the first with: no JSON: <html>"),
        (lambda body: (401, {"error": "wrong key"}), 'HTTP 401: {"error": "wrong key"}'),
        (lambda body: (500, b""), "40 refused, the first with: HTTP 500: no reason given"),
    ],
    ids=["no log-probabilities", "no verdict", "no JSON", "unauthorised", "failing"],
)
def test_an_engine_that_is_of_no_use_is_named_and_nothing_is_written(
    engine: Engine, trace: str, tmp_path: Path, capsys: Any, script: Script, complaint: str
) -> None:
    engine.script = script
    out = tmp_path / "out.json"
    assert calibrate(engine, trace, out) == 1
    assert complaint in capsys.readouterr().err
    assert not out.exists()


def test_no_engine_says_how_to_start_one(trace: str, tmp_path: Path, capsys: Any) -> None:
    flags = ["--trace", trace, "--target-rate", "0.2", "--out", str(tmp_path / "out.json")]
    assert main(["collab", "calibrate", "--base-url", "http://127.0.0.1:9", *flags]) == 1
    assert "http://127.0.0.1:9/v1/models does not answer" in capsys.readouterr().err


def test_another_model_is_not_taken_for_the_one_asked_for(
    engine: Engine, trace: str, tmp_path: Path, capsys: Any
) -> None:
    assert calibrate(engine, trace, tmp_path / "out.json", "--model", "large") == 1
    assert "serves /models/small; name one of them with --model" in capsys.readouterr().err


def test_too_few_steps_are_told_before_the_engine_is_asked(
    engine: Engine, trace: str, tmp_path: Path, capsys: Any
) -> None:
    assert calibrate(engine, trace, tmp_path / "out.json", "--sessions", "1") == 1
    assert "10 steps to judge (a session's last is none), expected at least 20" in capsys.readouterr().err
    assert engine.bodies == []


def test_a_trace_that_cannot_be_read_and_a_folder_that_is_not_there(
    engine: Engine, trace: str, tmp_path: Path, capsys: Any
) -> None:
    assert calibrate(engine, str(tmp_path / "none.jsonl"), tmp_path / "out.json") == 1
    assert "none.jsonl" in capsys.readouterr().err
    assert calibrate(engine, trace, tmp_path / "no" / "out.json") == 1
    assert "its folder does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "1", "20%", "nan"])
def test_a_rate_is_a_share(rate: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["collab", "calibrate", "--base-url", "u", "--trace", "t", "--out", "o", "--target-rate", rate])
    assert "expected a share between 0 and 1" in capsys.readouterr().err


def test_show_says_what_a_file_holds(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "threshold.json"
    threshold.write(threshold.fit([place / 20 for place in range(20)], 0.2, "small", "block"), path)
    assert main(["collab", "show", str(path)]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows[2:] == [
        "model small",
        "check block",
        "threshold 0.175",
        "target 20.0%",
        "escalates 20.0% of steps (8.1% to 41.6%)",
        "fitted on 20 steps",
    ]
    path.write_text("{}")
    assert main(["collab", "show", str(path)]) == 1
    assert "not a threshold of version 1" in capsys.readouterr().err


def test_a_histogram_counts_each_once_and_shows_the_rarest() -> None:
    lines = histogram([0.0, 0.05, 0.1, 1.0, *[0.95] * 500])
    assert [int(line.split()[1]) for line in lines] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 501]
    assert lines[1] == "  0.1-0.2    1  #"
    assert lines[9].endswith("#" * 40)
