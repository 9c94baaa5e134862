"""Our CPU attention and float32 products against upstream's `torch_native`, in two servers measured in turn.

    python benchmarks/cpu_engine.py --out benchmarks/results/cpu_engine.json

Both servers are stock `sglang.launch_server` and stay up; each sample of the one is followed or preceded by the same
request to the other, so that a neighbour's load falls on both. One request runs at a time: an idle server sleeps.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentinfer.models import prepare

MODEL = "smollm2-135m"
VARIANTS = {"ours": "0", "stock": "1"}  # AGENTINFER_CPU_STOCK_ATTENTION
DECODE_STEPS = 24


@dataclass(frozen=True)
class Case:
    """Seconds of a prefill of `prompt_tokens`, or of one decode step of `batch` sequences with that context."""

    kind: str
    prompt_tokens: int
    batch: int = 1

    @property
    def name(self) -> str:
        return f"{self.kind} {self.prompt_tokens} tokens" + (f" x {self.batch}" if self.kind == "decode" else "")


CASES = (
    Case("prefill", 128),
    Case("prefill", 1024),
    Case("decode", 32),
    Case("decode", 32, 4),
    Case("decode", 32, 8),
    Case("decode", 1024),
)


class Server:
    """`python -m sglang.launch_server` in a process group of its own."""

    def __init__(self, dtype: str, stock: str, threads: int, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        model = str(prepare(MODEL, dtype=dtype))
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--dtype", dtype]
        command += ["--port", self.url.rpartition(":")[2], "--max-total-tokens", "16384", "--max-running-requests", "8"]
        environment = {
            **os.environ,
            "AGENTINFER_CPU_STOCK_ATTENTION": stock,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                command, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.log = log

    def wait(self, timeout_s: float = 180.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url + "/health", timeout=2):
                return
            time.sleep(0.5)
        raise SystemExit(f"the server did not come up; its log is {self.log}")

    def seconds(self, prompts: list[list[int]], new_tokens: int) -> float:
        sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
        body = json.dumps({"input_ids": prompts, "sampling_params": sampling}).encode()
        request = urllib.request.Request(self.url + "/generate", body, {"content-type": "application/json"})
        start = time.perf_counter()
        with urllib.request.urlopen(request, timeout=300) as response:
            response.read()
        return time.perf_counter() - start

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, number)
                self.process.wait(10)


def sample(server: Server, case: Case, prompts: list[list[int]]) -> float:
    """Seconds of the prefill, or of one decode step: what more tokens take beyond the first, whose prompt is cached."""
    first = server.seconds(prompts, 1)
    if case.kind == "prefill":
        return first
    cached = server.seconds(prompts, 1)
    return (server.seconds(prompts, 1 + DECODE_STEPS) - cached) / DECODE_STEPS


def measure(servers: dict[str, Server], case: Case, repeats: int, rng: random.Random) -> dict[str, Any]:
    samples: dict[str, list[float]] = {name: [] for name in servers}
    for repeat in range(-1, repeats):  # the first pair warms up
        prompts = [[rng.randrange(100, 40_000) for _ in range(case.prompt_tokens)] for _ in range(case.batch)]
        order = list(servers) if repeat % 2 else list(servers)[::-1]
        for name in order:
            seconds = sample(servers[name], case, prompts)
            if repeat >= 0:
                samples[name].append(seconds)
    ratios = [stock / ours for ours, stock in zip(samples["ours"], samples["stock"], strict=True)]
    return {
        "case": {**asdict(case), "name": case.name},
        "seconds": {name: spread(values) for name, values in samples.items()},
        "speedup": spread(ratios),
        "samples_s": samples,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "q1": low, "q3": high}


def machine() -> dict[str, Any]:
    names: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("torch", "sglang", "agentinfer")},
    }


@contextlib.contextmanager
def running(dtype: str, threads: int, log_dir: Path) -> Iterator[dict[str, Server]]:
    servers: dict[str, Server] = {}
    try:
        for name, stock in VARIANTS.items():
            servers[name] = Server(dtype, stock, threads, log_dir / f"cpu_engine-{dtype}-{name}.log")
            servers[name].wait()
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_engine.json"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="OMP_NUM_THREADS of each server")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-dir", type=Path, default=Path("/tmp"))
    arguments = parser.parse_args()

    # A terminated run must not leave servers behind; its cases so far are kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    report: dict[str, Any] = {
        "format": "agentinfer.benchmark.cpu_engine",
        "version": 1,
        "command": " ".join(["python", *sys.argv]),
        "model": MODEL,
        "seed": arguments.seed,
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "load_average": os.getloadavg(),
        "machine": machine(),
        "results": [],
    }
    for dtype in arguments.dtypes:
        with running(dtype, arguments.threads, arguments.log_dir) as servers:
            rng = random.Random(arguments.seed)
            for case in CASES:
                result = {"dtype": dtype, **measure(servers, case, arguments.repeats, rng)}
                report["results"].append(result)
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")
                ours, stock = (result["seconds"][name]["median"] * 1e3 for name in VARIANTS)
                gain = result["speedup"]
                print(
                    f"{dtype:9} {case.name:24} ours {ours:8.1f} ms  stock {stock:8.1f} ms  "
                    f"{gain['median']:.2f}x [{gain['q1']:.2f}, {gain['q3']:.2f}]",
                    flush=True,
                )


if __name__ == "__main__":
    main()
