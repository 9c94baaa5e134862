"""The launcher with real processes: the proof it demands of schedulers, its exit statuses, a scheduler that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from tests.live_server import SHORT_FLAGS, SMALL_MACHINE, LiveServer, free_port

pytestmark = pytest.mark.e2e

# Our launcher, but its child processes are told to leave our plugin out: what a scheduler without us looks like. The
# platform plugin stays, which the variable filters too, or there would be no engine without a GPU.
WITHOUT_US_IN_CHILDREN = """
import os, sys
from agentinfer.runtime import launch
run = launch._run
def run_without_us(*args):
    os.environ["SGLANG_PLUGINS"] = "agentinfer_cpu"
    run(*args)
launch._run = run_without_us
sys.exit(launch.serve(sys.argv[1:]))
"""


def run(*command: str) -> tuple[int, list[str]]:
    """Exit status and lines of a launcher that is expected to end by itself."""
    done = subprocess.run(
        [sys.executable, *command, *SHORT_FLAGS, "--port", str(free_port())],
        env={**os.environ, **SMALL_MACHINE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout.strip().splitlines()


def test_scheduler_without_our_plugin_stops_the_launcher(tmp_path) -> None:
    status, lines = run("-c", WITHOUT_US_IN_CHILDREN)
    assert status == 3, "\n".join(lines[-20:])
    message = "\n".join(lines[-4:])
    assert "agentinfer: error: SGLang is not extended as configured, so nothing is served." in message
    assert "reported no proof: our plugin did not run there" in message
    assert "AGENTINFER_DISABLE=all" in message
    assert not any("ready" in line for line in lines if line.startswith("agentinfer"))


def test_model_that_is_not_there_ends_the_launcher_with_its_name(tmp_path) -> None:
    status, lines = run("-m", "agentinfer.launch_server", "--model-path", str(tmp_path / "gone"))
    assert status == 1
    assert lines[-1].startswith("agentinfer: error: the server failed: ")
    assert "gone" in lines[-1]


def test_schedulers_behind_a_data_parallel_controller_are_proved_and_end_with_the_launcher(
    launch: Callable[..., LiveServer],
) -> None:
    cores = sorted(os.sched_getaffinity(0))
    # Without a GPU the engine wants a NUMA node a scheduler, unless it is told which cores to take.
    live = launch("--dp-size", "2", env={"SGLANG_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}"})
    assert live.chat([{"role": "user", "content": "Hello"}])["choices"]
    assert "agentinfer ready: " in live.log.read_text()
    assert live.terminate() == 0
    assert "agentinfer: error" not in live.log.read_text()


def test_a_template_that_compression_cannot_use_ends_the_launcher_before_the_first_request(tmp_path) -> None:
    template = tmp_path / "no-tools.jinja"
    template.write_text(
        "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% endif %}{% endfor %}"
    )
    status, lines = run("-m", "agentinfer.launch_server", "--enable-compress", "--chat-template", str(template))
    assert status == 2, "\n".join(lines[-20:])
    assert lines[-1].startswith("agentinfer: error: --agentinfer-compress: the model's chat template renders no tool")
    assert "--chat-template" in lines[-1]
    assert not any("Traceback" in line or line.startswith("agentinfer ready") for line in lines)


def test_a_scheduler_that_dies_ends_the_server_with_a_message(launch: Callable[..., LiveServer]) -> None:
    live = launch()
    scheduler = next(pid for pid in children(live.process.pid) if "scheduler" in process_title(pid))
    answers: list[object] = []
    waiting = threading.Thread(target=lambda: answers.append(stream_until_the_end(live)))
    waiting.start()
    time.sleep(1.0)
    os.kill(scheduler, signal.SIGKILL)
    live.process.wait(120)
    assert live.process.returncode != 0
    assert "scheduler" in live.tail(60)
    assert "agentinfer:" in live.tail(60)
    waiting.join(60)
    assert not waiting.is_alive()


def stream_until_the_end(live: LiveServer) -> str:
    try:
        question = [{"role": "user", "content": "Count from one to one hundred."}]
        body = {"model": live.model, "messages": question, "max_tokens": 4000, "ignore_eos": True}
        live.post("/v1/chat/completions", body, timeout_s=60)
    except OSError as error:
        return str(error)
    return "answered"


def children(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    if int(stat.read().rsplit(")", 1)[1].split()[1]) == pid:
                        found.append(int(entry))
            except OSError:
                continue
    return found


def process_title(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as title:
        return title.read().replace(b"\0", b" ").decode(errors="replace")
