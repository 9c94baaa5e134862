"""What a hostile or unlucky world does to the server, and what it says about it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.live_server import LiveServer

pytestmark = pytest.mark.e2e

QUESTION = [{"role": "user", "content": "Count from one to one hundred."}]


def still_answers(server: LiveServer) -> bool:
    return bool(server.chat(QUESTION, max_tokens=2)["choices"])


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.2)


def running_requests(server: LiveServer) -> float:
    lines = [line for line in server.get("/metrics").splitlines() if line.startswith("sglang:num_running_reqs{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_client_that_vanishes_mid_stream_frees_its_request(server: LiveServer) -> None:
    body = json.dumps(
        {
            "model": server.model,
            "messages": QUESTION,
            "max_tokens": 4000,
            "ignore_eos": True,
            "stream": True,
            "agentinfer": {"session": "vanishing"},
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(head.encode() + body)
        received = b""
        while received.count(b"data: ") < 3:
            received += client.recv(4096)
    wait_until(lambda: server.get("/agentinfer/sessions/vanishing").get("last_outcome") == "client_gone")
    wait_until(lambda: running_requests(server) == 0)
    assert still_answers(server)


def test_ten_megabyte_prompt_is_refused_with_the_limit_named(server: LiveServer) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * (10 * 2**20 // 45)
    status, answer = server.post(
        "/v1/chat/completions",
        {"model": server.model, "messages": [{"role": "user", "content": text}], "max_tokens": 4},
        timeout_s=180,
    )
    assert status == 400
    assert "context length" in json.dumps(answer) or "maximum allowed length" in json.dumps(answer)
    assert still_answers(server)


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"messages": 3}', b'"text"', b"\xff\xfe", b""],
    ids=["cut", "list", "wrong type", "string", "bytes", "empty"],
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/generate"]
)
def test_broken_json_is_a_client_error(server: LiveServer, path: str, body: bytes) -> None:
    status, answer = server.post(path, body)
    assert 400 <= status < 500, answer
    assert answer
    assert server.get("/v1/models")["data"]  # `/health` waits for a second


@pytest.mark.parametrize(
    ("hint", "field"),
    [
        ({"session": 5}, "agentinfer.session"),
        ({"turn": -1}, "agentinfer.turn"),
        ({"expected_tool_s": "soon"}, "agentinfer.expected_tool_s"),
        ({"sesion": "typo"}, "agentinfer.sesion"),
        ("not an object", "agentinfer"),
        ({"forced": {"token_ids": ["a"]}}, "agentinfer.forced"),
    ],
    ids=["type", "range", "number", "unknown key", "shape", "forced"],
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/generate"]
)
def test_malformed_hint_is_refused_naming_the_field(server: LiveServer, path: str, hint: object, field: str) -> None:
    body = {
        "model": server.model,
        "messages": QUESTION,
        "prompt": "a",
        "input": "a",
        "text": "a",
        "max_tokens": 1,
        "agentinfer": hint,
    }
    status, answer = server.post(path, body)
    assert status == 400
    assert field in json.dumps(answer)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"])
def test_wrong_model_name_is_refused_naming_the_served_one(server: LiveServer, path: str) -> None:
    body = {"model": "gpt-5-typo", "messages": QUESTION, "prompt": "a", "input": "a", "max_tokens": 1}
    status, answer = server.post(path, body)
    assert status == 404
    assert "gpt-5-typo" in json.dumps(answer)
    assert server.model in json.dumps(answer)


def test_two_hundred_connections_at_once_are_all_served(server: LiveServer) -> None:
    def ask(number: int) -> int:
        messages = [{"role": "user", "content": f"Say the number {number}."}]
        status, _ = server.post(
            "/v1/chat/completions", {"model": server.model, "messages": messages, "max_tokens": 1}, timeout_s=240
        )
        return status

    with ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(ask, range(200)))
    assert statuses == [200] * 200
    assert running_requests(server) == 0
