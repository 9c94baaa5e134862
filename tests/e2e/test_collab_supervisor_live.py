"""Two real engines under one supervisor: both come up, one is killed and returns, and nothing is left in the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentinfer.runtime.collab.keeper import descendants
from tests.live_server import SHORT_FLAGS, SMALL_MACHINE, LiveServer, free_port

pytestmark = pytest.mark.e2e

FLAGS = ("--model-path", "embedded:smollm2-135m", "--small-model-path", "embedded:smollm2-135m")
LARGE, SMALL = "smollm2-135m-large", "smollm2-135m-small"


def wait_until(condition: Callable[[], object], timeout_s: float = 180.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "condition not met in time"
        time.sleep(0.2)


def titles(pids: set[int]) -> dict[int, str]:
    """Of those that still run, by process id."""
    found = {}
    for pid in pids:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if title:  # a dead process that nobody has reaped has none
            found[pid] = title.replace(b"\0", b" ").decode(errors="replace")
    return found


def launcher_of(live: LiveServer, name: str) -> int:
    assert live.process is not None
    running = titles(descendants(live.process.pid))
    (pid,) = [pid for pid, title in running.items() if name in title and ".keeper" not in title]
    return pid


def said(live: LiveServer, words: str) -> bool:
    return words in live.log.read_text(errors="replace")


def answer(base_url: str, model: str) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(
        f"{base_url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())["choices"][0]["message"]["content"]


def test_pair_survives_the_death_of_an_engine_and_ends_with_everything(launch: Callable[..., LiveServer]) -> None:
    live = launch(*FLAGS, model="collab")
    wait_until(lambda: said(live, "agentinfer ready: "))
    log = live.log.read_text(errors="replace")
    assert f"agentinfer ready: {live.url}  models collab, {LARGE}, {SMALL}  features sessions,collab" in log
    urls = dict(re.findall(r"^agentinfer: (\w+) engine: embedded:smollm2-135m as \S+ at (\S+)$", log, re.MULTILINE))
    assert {each["id"] for each in live.get("/v1/models")["data"]} >= {"collab", LARGE, SMALL}
    before = answer(urls["small"], SMALL)
    assert live.chat([{"role": "user", "content": "Hello"}])["choices"]

    other = launcher_of(live, SMALL)
    os.kill(launcher_of(live, LARGE), signal.SIGKILL)
    assert answer(urls["small"], SMALL) == before
    assert live.chat([{"role": "user", "content": "Hello"}])["choices"]
    wait_until(lambda: said(live, "the large engine is back"))
    assert answer(urls["large"], LARGE) == before  # the same model, at the same address
    assert launcher_of(live, SMALL) == other

    assert live.process is not None
    everything = descendants(live.process.pid)
    assert len(titles(everything)) >= 8  # of each engine: keeper, launcher, scheduler, detokenizer
    assert live.terminate() == 0
    assert titles(everything) == {}
    assert not said(live, "agentinfer: error")


def test_nothing_of_two_engines_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agentinfer.launch_server", *FLAGS, *SHORT_FLAGS, "--port", str(free_port())]
    with (tmp_path / "log").open("wb") as log:
        supervisor = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **SMALL_MACHINE}, start_new_session=True
        )
    try:
        # While they load: the schedulers are there, each with threads and helpers of its own.
        wait_until(lambda: str(titles(descendants(supervisor.pid)).values()).count("scheduler") >= 2)
        everything = descendants(supervisor.pid)
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_until(lambda: titles(everything) == {}, timeout_s=30)
