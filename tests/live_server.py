"""A real server in a process of its own: start, wait until it answers, read its log, stop."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Small enough for two cores with a server each, and equal for every server of the suite, so that outputs may be
# compared between them.
SMALL_MACHINE = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}

# Room for the longest test prompts, on a machine whose memory other processes share.
COMMON_FLAGS = ("--max-total-tokens", "24576", "--max-running-requests", "16")
# For servers that see a few short requests: the cache's memory is touched at start-up, which takes seconds.
SHORT_FLAGS = ("--max-total-tokens", "2048", "--max-running-requests", "16")


# Below those that the kernel gives to sockets that ask for none, so that nobody takes one between a look and its use.
PORTS = range(20_000, 32_000)
# SGLang's own sockets are within the next thousand ports behind a server's.
PORTS_BEHIND = 1_000


def ports_of_this_process() -> range:
    """Each of pytest-xdist's processes has its own part of `PORTS`, with the ports behind them."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    width = len(PORTS) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return PORTS[number * width : (number + 1) * width - PORTS_BEHIND]


def free_port() -> int:
    """A port to listen on later."""
    while True:
        port = random.choice(ports_of_this_process())
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class LiveServer:
    """`python -m MODULE FLAGS --port FREE`, its whole process group owned by this object."""

    log: Path
    flags: Sequence[str] = ()
    module: str = "agentinfer.launch_server"
    env: Mapping[str, str] = field(default_factory=dict)
    model: str = "smollm2-135m"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, timeout_s: float = 240.0, tries: int = 3) -> LiveServer:
        """Waits until it answers. Raises RuntimeError with the end of the log where it does not.

        SGLang looks for free ports some seconds before it binds them (`PortArgs.init_new`), so any other socket of the
        machine may take one in between; a start that died of that, and of nothing else, is tried again.
        """
        try:
            return self._start_once(timeout_s)
        except RuntimeError:
            if tries == 1 or "EADDRINUSE" not in self.log.read_text(errors="replace"):
                raise
            self.stop()
            self.log.unlink()
            return self.start(timeout_s, tries - 1)

    def _start_once(self, timeout_s: float) -> LiveServer:
        command = [sys.executable, "-m", self.module, *self.flags, "--port", str(self.port)]
        environment = {**os.environ, **SMALL_MACHINE, **self.env}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"server ended with status {self.process.returncode} before it was ready:\n{self.tail()}"
                )
            if self._answers():
                return self
            time.sleep(0.25)
        self.stop()
        raise RuntimeError(f"server did not answer within {timeout_s:.0f} s:\n{self.tail()}")

    def stop(self, grace_s: float = 3.0) -> None:
        """Ends all its processes at once: SGLang's own way takes up to 10 s. See `terminate` for that.

        The launcher is first: its children end with it, and the one that keeps shared memory in order still does so.
        """
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + grace_s
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.process.pid, 0)
                time.sleep(0.05)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process = None

    def terminate(self, timeout_s: float = 60.0) -> int:
        """The launcher's exit status after it alone was asked to end."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout_s)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path: str, timeout_s: float = 30.0) -> Any:
        """The JSON (or text) body of `GET path`; HTTP errors raise."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as response:
            body = response.read()
        return json.loads(body) if "json" in response.headers.get("content-type", "") else body.decode()

    def post(
        self, path: str, body: Any, headers: Mapping[str, str] | None = None, timeout_s: float = 120.0
    ) -> tuple[int, Any]:
        """Status and body of a POST; `body` goes out as it is when it is bytes, else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"content-type": "application/json", **(headers or {})}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                status, raw, kind = response.status, response.read(), response.headers.get("content-type", "")
        except urllib.error.HTTPError as error:
            status, raw, kind = error.code, error.read(), error.headers.get("content-type", "")
        return status, json.loads(raw) if "json" in kind and raw else raw.decode(errors="replace")

    def chat(self, messages: list[dict[str, Any]], max_tokens: int = 8, **fields: Any) -> Any:
        """The body of a greedy chat completion, which must succeed."""
        request = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **fields}
        status, body = self.post("/v1/chat/completions", request)
        assert status == 200, f"{status}: {body}"
        return body

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def __enter__(self) -> LiveServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
