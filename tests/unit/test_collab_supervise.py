"""The supervisor with engines that load nothing: what comes up, what comes back, what ends, and with which status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agentinfer.runtime.collab.keeper import descendants
from tests.live_server import free_port

# In place of an engine: takes SGLang's flags, answers what the front asks, and says that it was started.
ENGINE = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
argv = sys.argv[1:]
def value(flag):
    return argv[argv.index(flag) + 1]
name = value("--served-model-name")
print("agentinfer: started " + json.dumps(argv))
if "--refused" in argv:
    print("agentinfer: error: unknown flag --refused")
    sys.exit(2)
if "--slow" in argv:
    time.sleep(600)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        known = {"/health": {}, "/v1/models": {"data": [{"id": name, "object": "model"}]}}
        self.answer(known.get(self.path))
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "said by " + name}
        self.answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "model": name,
                     "object": "chat.completion", "id": "1", "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    def answer(self, body):
        data = json.dumps(body or {}).encode()
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *args):
        pass
ThreadingHTTPServer(("127.0.0.1", int(value("--port"))), Handler).serve_forever()
"""
# The launcher, but its engines are the above, and there is no SGLang to import.
LAUNCHER = """
import sys
sys.modules["sglang"] = None
from agentinfer.runtime.collab import supervise
supervise._LAUNCHER = (sys.executable, sys.argv[1])
from agentinfer.runtime.launch import serve
sys.exit(serve(sys.argv[2:]))
"""
PAIR = ("--model-path", "org/Big", "--small-model-path", "org/Little", "--device", "cpu")


class Server:
    """A launcher in a process of its own, its output in `lines` as it comes."""

    def __init__(self, folder: Path, *flags: str, port: int | None = None) -> None:
        engine = folder / "engine.py"
        engine.write_text(ENGINE)
        self.port = free_port() if port is None else port
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(engine), *flags, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("AGENTINFER_")},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, words: str, count: int = 1) -> list[str]:
        wait_until(lambda: len(self.having(words)) >= count or self.process.poll() is not None)
        assert len(self.having(words)) >= count, "\n".join(self.lines)
        return self.having(words)

    def having(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]

    def started(self, role: str) -> list[list[str]]:
        """The command lines of the starts of an engine so far."""
        prefix = f"[{role}] agentinfer: started "
        return [json.loads(line.removeprefix(prefix)) for line in self.lines if line.startswith(prefix)]

    def engine(self, role: str) -> int:
        """The process of the engine that runs now."""
        port = self.started(role)[-1]
        listening = port[port.index("--port") + 1]
        for pid in descendants(self.process.pid):
            words = command_line(pid)
            if "engine.py" in str(words) and "keeper" not in str(words) and listening in words:
                return pid
        raise AssertionError(f"no {role} engine runs")

    def ask(self, path: str, body: object = None) -> tuple[dict[str, str], dict]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return dict(answer.headers), json.loads(answer.read() or b"{}")

    def ended(self) -> int:
        status = self.process.wait(30)
        self._reader.join(10)
        return status


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "condition not met in time"
        time.sleep(0.05)


def are_gone(pids: set[int]) -> bool:
    return not any(command_line(pid) and command_line(pid) != [""] for pid in pids)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*flags: str, port: int | None = None) -> Server:
        servers.append(Server(tmp_path, *flags, port=port))
        return servers[-1]

    yield start
    for server in servers:
        pids = descendants(server.process.pid)
        server.process.kill()
        server.process.wait(10)
        wait_until(lambda gone=pids: are_gone(gone))


def test_a_pair_serves_one_model_survives_an_engine_and_ends_in_order(serve) -> None:
    server = serve(*PAIR, "--large-tp-size", "2", "--agentinfer-record", "r.jsonl")
    ready = server.wait_for("agentinfer ready: ")[0]
    url = f"http://127.0.0.1:{server.port}"
    assert ready == f"agentinfer ready: {url}  models collab, org/Big, org/Little  features sessions,record,collab"
    names = {each["id"] for each in server.ask("/v1/models")[1]["data"]}
    assert names == {"collab", "org/Big", "org/Little"}
    assert server.started("large")[0][:6] == ["--device", "cpu", "--model-path", "org/Big", "--tp-size", "2"]
    assert "r-small.jsonl" in server.started("small")[0]

    def speak() -> str:
        question = {"model": "collab", "messages": [{"role": "user", "content": "Who?"}]}
        return str(server.ask("/v1/chat/completions", question)[1]["choices"][0]["message"]["content"])

    assert speak() == "said by org/Big"  # the large model opens

    other, victim = server.engine("small"), server.engine("large")
    os.kill(victim, signal.SIGKILL)
    assert speak() == "said by org/Little"
    said = server.wait_for("the large engine ended with status 137 (killed by SIGKILL)")[0]
    assert said.startswith("agentinfer: ")
    server.wait_for("the large engine is back, at http://127.0.0.1:")
    assert server.started("large") == [server.started("large")[0]] * 2
    assert server.engine("small") == other
    assert server.engine("large") != victim
    wait_until(lambda: speak() == "said by org/Big")

    everything = descendants(server.process.pid)
    assert len(everything) >= 4
    server.process.terminate()
    assert server.ended() == 0
    assert are_gone(everything)
    assert not server.having("error")


def test_supervisor_that_is_killed_leaves_no_process(serve) -> None:
    server = serve(*PAIR)
    server.wait_for("agentinfer ready: ")
    everything = descendants(server.process.pid)
    server.process.kill()
    server.process.wait(10)
    wait_until(lambda: are_gone(everything))


@pytest.mark.parametrize("role", ["large", "small"])
def test_engine_that_refuses_its_flags_ends_both_with_its_own_words(serve, role: str) -> None:
    server = serve(*PAIR, f"--{role}-refused", *(["--small-slow"] if role == "large" else ["--large-slow"]))
    assert server.ended() == 2
    reason = "unknown flag --refused"
    assert server.lines[-1] == (
        f"agentinfer: error: the {role} engine ended with status 2 before it was ready: {reason}"
    )
    assert not server.having("agentinfer ready")


def test_asked_to_end_while_it_starts_it_ends(serve) -> None:
    server = serve(*PAIR, "--slow")
    server.wait_for("] agentinfer: started", count=2)
    everything = descendants(server.process.pid)
    server.process.send_signal(signal.SIGINT)
    assert server.ended() == 0
    assert are_gone(everything)


def test_port_that_is_taken_is_said_before_anything_is_started(serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = serve(*PAIR, port=port)
        assert server.ended() == 2
    said = f"agentinfer: error: --host 127.0.0.1 --port {port}: cannot listen there: Address already in use"
    assert server.lines == [said]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((*PAIR, "--agentinfer-collab-burst-max", "1"), "burst_max: got 1, expected at least burst_first, which is 2"),
        ((*PAIR, "--agentinfer-collab-threshold-file", "/nowhere"), "/nowhere: not readable as a threshold"),
        ((*PAIR, "--small-port", "3"), "--small-port: the engines listen on this machine alone"),
        ((*PAIR, "--ssl-keyfile", "/nowhere", "--ssl-certfile", "/nowhere"), "--ssl-certfile /nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(serve, flags: tuple[str, ...], said: str) -> None:
    server = serve(*flags)
    assert server.ended() == 2
    assert server.lines[-1].startswith("agentinfer: error: ")
    assert said in server.lines[-1]
    assert not server.having("started")


# ---- engines elsewhere


class Remote(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_known = self.headers.get("Authorization") == "Bearer secret"
        body = json.dumps({"data": [{"id": "remote"}]} if is_known else {}).encode()
        self.send_response(200 if is_known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def remote() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Remote) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_with_both_engines_elsewhere_only_the_front_runs(serve, remote: str) -> None:
    server = serve(
        "--large-base-url", f"{remote}/v1", "--large-api-key", "secret", "--small-base-url", "http://127.0.0.1:9",
        "--small-served-model-name", "later",
    )  # fmt: skip
    ready = server.wait_for("agentinfer ready: ")[0]
    assert "  models collab, remote, later  " in ready
    assert "it will be asked for later" in server.having("the small engine at http://127.0.0.1:9 does not answer")[0]
    assert descendants(server.process.pid) == set()
    server.process.terminate()
    assert server.ended() == 0


def test_key_that_an_engine_elsewhere_does_not_take_is_said(serve, remote: str) -> None:
    server = serve("--large-base-url", remote, "--small-base-url", remote)
    assert server.ended() == 2
    assert "it answers 401 to /v1/models. Its key is given by --large-api-key" in server.lines[-1]


def test_two_models_of_one_name_are_refused_before_anything_is_started(serve, remote: str) -> None:
    server = serve("--large-base-url", remote, "--large-api-key", "secret", "--small-model-path", "remote")
    assert server.ended() == 2
    assert "two models are called remote, so clients could not tell them apart" in server.lines[-1]
    assert not server.having("started")


# ---- off


def test_without_a_small_model_nothing_of_the_pair_is_imported() -> None:
    code = """
import sys
from agentinfer.runtime import launch
launch._serve = lambda line, wants_help: print(line.engine_argv)
assert launch.serve(["--model-path", "m"]) == 0
names = ("agentinfer.runtime.collab", "agentinfer.collab_lang", "aiohttp")
print([name for name in sys.modules if name.startswith(names)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["('--model-path', 'm')", "[]"], done.stderr
