"""One drafter over one tokenised trace, in a process of its own, so that its memory is its own.

    python -m benchmarks.drafting.process '{"tokens": FILE, "drafter": NAME, "budget": 16, ...}'

Prints its measurements as one line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.drafting.calibration import Calibration
from benchmarks.drafting.catalogue import factory
from benchmarks.drafting.drafter import BenchmarkError
from benchmarks.drafting.figures import accepted_per_step, figures
from benchmarks.drafting.replay import serve, serve_leaving_out
from benchmarks.drafting.sessions import load


def main() -> int:
    job = json.loads(sys.argv[1])
    try:
        print(json.dumps(measure(job)))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def measure(job: dict[str, Any]) -> dict[str, Any]:
    trace = load(Path(job["tokens"]))
    make = factory(job["drafter"], job["budget"], trace.source.end_of_turn, job["settings"])
    at_start_mb = memory_mb("VmRSS")
    calibration = Calibration()
    if job["leave_out"]:
        tallies = list(serve_leaving_out(trace, make, job["budget"], calibration))
    else:
        tallies = list(serve(trace, make(), job["budget"], calibration))
    first = [t for t in tallies if not t.is_repeat]
    repeat = [t for t in tallies if t.is_repeat]
    return {
        "new_tasks": figures(first),
        "repeated_tasks": figures(repeat),
        "all_sessions": figures(tallies),
        "accepted_per_step": accepted_per_step(first),
        "calibration": calibration.summary(),
        "peak_rss_mb": memory_mb("VmHWM"),
        "rss_before_drafting_mb": at_start_mb,
    }


def memory_mb(field: str) -> float:
    """A figure of this process in 10^6 bytes. VmHWM starts anew with each program, unlike getrusage's maximum."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / 1e6
    raise BenchmarkError(f"/proc/self/status has no line {field}; peak memory is measured on Linux only")


if __name__ == "__main__":
    raise SystemExit(main())
