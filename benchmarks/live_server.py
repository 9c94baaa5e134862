"""A server of a benchmark's own: started with given flags, waited for, stopped with all its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path


class LiveServer:
    """`python -m agentinfer.launch_server FLAGS` on a free port, in a process group of its own; it writes to `log`."""

    def __init__(self, flags: Sequence[str], log: Path, threads: int) -> None:
        """`threads`: what OpenMP may use in each of the server's processes."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        # Waiting threads sleep: spinning ones would take the cores from the client that measures.
        threading = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agentinfer.launch_server", *flags, "--port", str(port)],
                env={**os.environ, **threading, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> LiveServer:
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def wait(self, timeout_s: float = 300.0) -> None:
        """Until it answers. Raises SystemExit naming the log where it does not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url + "/health", timeout=2):
                return
            time.sleep(0.5)
        raise SystemExit(f"the server did not come up; its log is {self.log}")

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, number)
                self.process.wait(20)
