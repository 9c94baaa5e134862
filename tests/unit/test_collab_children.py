"""Engines as child processes: real processes, small ones, that are killed in every way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentinfer.runtime.collab.children import Child, EngineEnded, Patience, described
from tests.live_server import free_port

# Answers /health. Leaves a process of its own session behind, as no engine should, and writes its id to a file.
ENGINE = """
import http.server, subprocess, sys
port, note = int(sys.argv[1]), sys.argv[2]
leaver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(note, "a").write(f"{leaver.pid}\\n")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass
print("loading\\rready", flush=True)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
REFUSING = "import sys; print('agentinfer: error: unknown flag --xyz'); print('a last line'); sys.exit(2)"

QUICK = Patience(poll_s=0.05, first_backoff_s=0.1, longest_backoff_s=0.2, grace_s=5.0)


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return False


def wait_until(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "condition not met in time"
        time.sleep(0.02)


@pytest.fixture
def note(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "pids"
    path.touch()
    yield path
    for pid in leavers(path):
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def leavers(note: Path) -> list[int]:
    return [int(line) for line in note.read_text().split()]


def keeper(*command: str, supervisor: int | None = None) -> subprocess.Popen[bytes]:
    parent = os.getpid() if supervisor is None else supervisor
    module = [sys.executable, "-m", "agentinfer.runtime.collab.keeper", str(parent)]
    return subprocess.Popen([*module, *command], start_new_session=True)


def engine_of(pid: int) -> int:
    """The child of the keeper `pid`."""
    found: list[int] = []

    def look() -> list[int]:
        found[:] = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found

    wait_until(look)
    return found[0]


@pytest.mark.parametrize(
    ("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + 9)]
)
def test_keeper_ends_with_the_engines_status(code: str, status: int) -> None:
    assert keeper(sys.executable, "-c", code).wait(20) == status


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_what_an_engine_leaves_behind_goes_with_it(note: Path, sent: signal.Signals) -> None:
    kept = keeper(sys.executable, "-c", ENGINE, str(free_port()), str(note))
    wait_until(lambda: leavers(note))
    os.kill(engine_of(kept.pid), sent)
    assert kept.wait(20) == 128 + sent
    assert not is_running(leavers(note)[0])


def test_sigterm_reaches_the_engine_and_its_status_comes_back(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = "import pathlib, signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); "
    code += f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    kept = keeper(sys.executable, "-c", code)
    wait_until(ready.exists)
    kept.terminate()
    assert kept.wait(20) == 7


@pytest.mark.parametrize("victim", ["supervisor", "keeper"])
def test_nothing_outlives_whoever_watches_over_it(note: Path, victim: str) -> None:
    module = "[sys.executable, '-m', 'agentinfer.runtime.collab.keeper', str(os.getpid()), *sys.argv[1:]]"
    code = f"import os, subprocess, sys; subprocess.Popen({module}, start_new_session=True).wait()"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, "-c", ENGINE, str(free_port()), str(note)]
    )
    wait_until(lambda: leavers(note))
    kept = engine_of(supervisor.pid)
    engine = engine_of(kept)
    os.kill(supervisor.pid if victim == "supervisor" else kept, signal.SIGKILL)
    supervisor.wait(20)
    wait_until(lambda: not is_running(engine) and not is_running(kept))
    if victim == "supervisor":
        wait_until(lambda: not is_running(leavers(note)[0]))


def child(said: list[str], *command: str, port: int = 1) -> Child:
    async def line() -> list[str]:
        return [sys.executable, "-c", *command]

    return Child("small", line, os.environ, f"http://127.0.0.1:{port}", said.append, QUICK)


def test_engine_that_is_killed_comes_back_on_its_port(note: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    port = free_port()
    engine = child(said, ENGINE, str(port), str(note), port=port)

    async def story() -> None:
        await engine.launch()
        keeping = asyncio.create_task(engine.keep())
        assert engine._process is not None
        for restarts in (1, 2):
            os.kill(engine_of(engine._process.pid), signal.SIGKILL)
            await asyncio.to_thread(wait_until, lambda count=restarts: "is back" in str(said[2 * count - 1 :]))
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await engine.stop()

    asyncio.run(story())
    assert engine.num_restarts == 2
    assert said[0] == "the small engine ended with status 137 (killed by SIGKILL). It is started again in 0.1 s"
    assert len(leavers(note)) == 3
    assert not any(is_running(pid) for pid in leavers(note))
    assert capfd.readouterr().out.splitlines() == ["[small] loading", "[small] ready"] * 3


def test_engine_that_cannot_start_is_given_up_with_its_own_words() -> None:
    engine = child([], REFUSING)
    with pytest.raises(
        EngineEnded, match="the small engine ended with status 2 before it was ready: unknown flag --xyz"
    ):
        asyncio.run(engine.launch())


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["agentinfer: a note on a flag", "the end"], "the end"),
        (["agentinfer: error: no such file", "the end"], "no such file"),
        (
            ["agentinfer: scheduler (pid 7) died: killed by SIGKILL. The server stops."],
            "scheduler (pid 7) died: killed",
        ),
        (["agentinfer: scheduler (pid 7) failed while serving: KeyError: 1. The server stops.", "x"], "failed while"),
    ],
    ids=["only notes", "refused", "killed", "failed"],
)
def test_reason_is_the_launchers_own_where_it_gave_one(lines: list[str], word: str) -> None:
    engine = child([], f"print({chr(10).join(lines)!r}); raise SystemExit(1)")
    with pytest.raises(EngineEnded) as ended:
        asyncio.run(engine.launch())
    assert word in ended.value.reason


def test_lost_race_for_a_port_is_tried_again_some_times_only() -> None:
    said: list[str] = []
    engine = child(said, "import sys; print('OSError: EADDRINUSE'); sys.exit(1)")
    with pytest.raises(EngineEnded):
        asyncio.run(engine.launch())
    assert len(said) == QUICK.port_tries - 1


def test_engines_that_share_a_gpu_start_one_after_the_other(note: Path) -> None:
    starting = asyncio.Lock()
    order: list[str] = []

    def engine(role: Any, port: int) -> Child:
        async def line() -> list[str]:
            order.append(f"{role} starts")
            return [sys.executable, "-c", ENGINE, str(port), str(note)]

        return Child(role, line, os.environ, f"http://127.0.0.1:{port}", lambda text: None, QUICK, starting)

    async def launch(child: Child) -> None:
        await child.launch()
        order.append(f"{child.role} ready")

    async def story() -> None:
        large, small = engine("large", free_port()), engine("small", free_port())
        await asyncio.gather(launch(large), launch(small))
        keeping = [asyncio.create_task(child.keep()) for child in (large, small)]
        for child in (large, small):
            child.kill()
        await asyncio.to_thread(wait_until, lambda: len(leavers(note)) == 4)
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        await asyncio.gather(large.stop(), small.stop())

    asyncio.run(story())
    assert order[:4] == ["large starts", "large ready", "small starts", "small ready"]


def test_engine_that_ignores_the_request_to_end_is_killed(note: Path) -> None:
    port = free_port()
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ENGINE
    engine = child([], deaf, str(port), str(note), port=port)
    engine._patience = Patience(poll_s=0.05, grace_s=0.3)

    async def story() -> None:
        await engine.launch()
        await engine.stop()

    asyncio.run(story())
    assert not is_running(leavers(note)[0])


def test_restarts_wait_longer_up_to_a_bound() -> None:
    waits = [Patience().backoff_s(failures) for failures in range(1, 9)]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert Patience().backoff_s(10**6) == 30


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "status 0"), (2, "status 2"), (137, "status 137 (killed by SIGKILL)"), (250, "status 250")],
)
def test_exit_statuses_in_words(status: int, words: str) -> None:
    assert described(status) == words
