"""Model `collab` whose small model is two replicas behind a real sglang-router."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_clients import CLIENTS_PYTHON
from tests.live_server import LiveServer, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FLAGS = ("--max-total-tokens", "8192", "--max-running-requests", "8")
# Every step counts as no progress, so the models change places as often as their budgets allow.
FRONT = ("--agentinfer-collab-check", "verdict", "--agentinfer-collab-threshold", "1.0")
TASK = "Find where the parser drops a newline. " + " ".join(
    f"File number {number} has {number * 7} lines and is named after its first function." for number in range(30)
)


@dataclass
class Cluster:
    front: LiveServer
    replicas: list[LiveServer]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as running:
        engines = []
        for name, model in (("large", "gemma3-270m"), ("first", "smollm2-135m"), ("second", "smollm2-135m")):
            engine = LiveServer(log=folder / name, flags=("--model-path", f"embedded:{model}", *FLAGS), model=model)
            running.callback(engine.stop)
            engines.append(engine.start())
        large, *replicas = engines
        router = running.enter_context(routed(replicas, folder / "router"))
        flags = (*FRONT, "--large-base-url", large.url, "--small-base-url", router)
        front = LiveServer(log=folder / "front", flags=flags, model="collab")
        running.callback(front.stop)
        yield Cluster(front.start(), replicas)


@contextmanager
def routed(replicas: list[LiveServer], log: Path) -> Iterator[str]:
    """The router's address, while the block runs."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [str(CLIENTS_PYTHON), "-m", "sglang_router.launch_router", "--policy", "manual", "--log-level", "warn"]
    command += ["--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--prometheus-port", str(free_port())]
    with log.open("w") as out:
        command += ["--worker-urls", *(replica.url for replica in replicas)]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not answers(f"{url}/v1/models"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def turns(front: LiveServer, session: str, history: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Turns whose tool takes until the work between them is done; each one's usage and what is told of it."""
    seen = []
    for _ in range(count):
        body = front.chat(history, max_tokens=16, ignore_eos=True, temperature=0, agentinfer={"session": session})
        seen.append({**body["agentinfer"]["collab"], **body["usage"]})
        history += [body["choices"][0]["message"], {"role": "user", "content": "Go on."}]
        deadline = time.monotonic() + 60
        while is_at_work(front.get(f"/agentinfer/sessions/{session}")["collab"]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    return seen


def is_at_work(collab: dict[str, Any]) -> bool:
    return bool(collab["is_checking"] or collab["is_warming"])


def test_a_session_stays_on_its_replica_and_outlives_it(cluster: Cluster) -> None:
    history = [{"role": "user", "content": TASK}]
    seen = turns(cluster.front, "steady", history, 6)
    assert {each["model"] for each in seen} == {"large", "small"}
    small = [each for each in seen if each["model"] == "small"]
    assert len(small) >= 2
    for each in small:
        # The first was computed ahead by way of the router, the next ones are on the replica that has the session.
        assert each["prompt_tokens_details"]["cached_tokens"] >= 0.9 * (each["prompt_tokens"] - 40), seen

    for replica in cluster.replicas:
        if metric(replica, "sglang:num_requests_total") >= len(small):
            replica.stop()
            break
    else:
        raise AssertionError("no replica has had the session")
    after = turns(cluster.front, "steady", history, 6)
    assert {each["model"] for each in after} == {"large", "small"}


def metric(live: LiveServer, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in live.get("/metrics").splitlines() if line.startswith(name))
