"""Microseconds a call of the ops in `agentinfer.kernels`, beside their references and what stock SGLang runs instead.

    python -m benchmarks.kernels [--device cpu|cuda] [--op NAME] [--repeats N] [--seconds S] [--json OUT]

Inputs come from the ops' specs. All contenders of a case run in turn within each round, and ratios are taken round by
round, so that what else the machine does falls on all of them. On a GPU a time is that of the call until the device is
done.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from agentinfer.kernels.check import SPECS
from agentinfer.kernels.dispatch import has_flashinfer
from agentinfer.kernels.spec import Case, OpSpec, to_device
from benchmarks import kernel_peers

OURS = "ours"
SEED = 0
REFERENCE_LIMIT_S = 0.2  # a slower reference is left out of the rounds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--op", choices=[spec.name for spec in SPECS], help="default: all")
    parser.add_argument("--repeats", type=int, default=200, help="most rounds a case (default 200)")
    parser.add_argument("--seconds", type=float, default=5.0, help="end a case after so long, and 5 rounds (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default 1)")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/kernels_DEVICE.json")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = []
    for spec in SPECS:
        if options.op in (None, spec.name):
            for case in spec.measured:
                rows.append(measure(spec, case, torch.device(options.device), options.repeats, options.seconds))
                print(as_line(rows[-1]), flush=True)
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.kernels", *(sys.argv[1:] if argv is None else argv)]),
        "device": options.device,
        "threads": options.threads,
        "machine": machine(),
        "load_average": os.getloadavg()[0],  # of the last minute, this program itself included
        "rows": rows,
    }
    path = options.json or Path("benchmarks/results") / f"kernels_{options.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_json(report), encoding="utf-8")
    return 0


def measure(spec: OpSpec, case: Case, device: torch.device, repeats: int, limit_s: float) -> dict[str, Any]:
    """One case: each contender's microseconds, and how many times as long as ours it takes."""
    inputs = to_device(spec.make_inputs(case, torch.Generator().manual_seed(SEED)), device)
    contenders: dict[str, Callable[[], Any]] = {OURS: lambda: spec.call(inputs, None)}
    others = spec.on_gpu if device.type == "cuda" else spec.on_cpu
    for name in others[1:] if device.type == "cuda" else ():
        if name != "flashinfer" or has_flashinfer():
            contenders[name] = lambda name=name: spec.call(inputs, name)
    if device.type == "cpu" and seconds(lambda: spec.call(inputs, "reference"), device) < REFERENCE_LIMIT_S:
        contenders["reference"] = lambda: spec.call(inputs, "reference")
    peers = (kernel_peers.ON_GPU if device.type == "cuda" else kernel_peers.ON_CPU).get(spec.name, {})
    for name, peer in peers.items():
        run = peer(inputs)
        if run is not None:
            contenders[name] = run
    for run in contenders.values():
        for _ in range(3):
            run()
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    started = time.perf_counter()
    for done in range(repeats):
        if done >= 5 and time.perf_counter() - started > limit_s:
            break
        for name, run in contenders.items():
            samples[name].append(1e6 * seconds(run, device))
    return {
        "op": spec.name,
        "case": case.name,
        "axes": dict(case.axes),
        "seed": SEED,
        "microseconds": {
            name: summary(values) | {"samples": [round(value, 1) for value in values]}
            for name, values in samples.items()
        },
        "times_ours": {
            name: summary([other / own for other, own in zip(values, samples[OURS], strict=True)])
            for name, values in samples.items()
            if name != OURS
        },
    }


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def summary(values: Sequence[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 2), "q1": round(low, 2), "q3": round(high, 2)}


def as_json(report: dict[str, Any]) -> str:
    """The report with a line a row: samples are many."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in report["rows"])
    head = json.dumps({**report, "rows": []}, indent=1).removesuffix("[]\n}")
    return f"{head}[\n{rows}\n ]\n}}\n"


def as_line(row: dict[str, Any]) -> str:
    axes = " ".join(f"{name}={size}" for name, size in row["axes"].items())
    times = ", ".join(f"{name} {value['median']:.0f} us" for name, value in row["microseconds"].items())
    return f"{row['op']} ({row['case']}; {axes}): {times}"


def machine() -> dict[str, Any]:
    found: dict[str, Any] = {"cores": os.cpu_count(), "python": platform.python_version()}
    for package in ("torch", "triton", "flashinfer-python", "sglang", "agentinfer"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found["processor"] = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        found["processor"] = names[0] if names else found["processor"]
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


if __name__ == "__main__":
    sys.exit(main())
