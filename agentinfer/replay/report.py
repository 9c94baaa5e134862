"""Comparing replays pairwise: the same session, the same turn, in both runs; ratio of means with its spread, and signs.

The first run is the base. Turns of a session are not independent, so the bootstrap draws whole sessions. Only sessions
complete in both runs, with as many turns, and turns answered in both are paired; what was left out is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from agentinfer.errors import AgentInferError
from agentinfer.replay import table
from agentinfer.replay.measure import RESULT_FORMAT, RESULT_VERSION

NUM_DRAWS = 10_000
_COVERAGE_PERCENT = (2.5, 97.5)
_FEW_SESSIONS = 6
_METRICS = (
    ("task completion", "sessions", "completion_s"),
    ("turn latency", "turns", "latency_s"),
    ("time to first token", "turns", "ttft_s"),
    ("time an output token", "turns", "tpot_s"),
)
_WHOLE_RUN = (("output tokens a second", "output_tokens_per_s"), ("cached share, turns 2 on", "later_turns_hit_rate"))
# Options that must agree for the pairing to mean something.
_SAME_OPTIONS = ("forced", "send_hints", "shuffle", "warmup", "max_tokens", "temperature", "limits", "loop")


@dataclass(frozen=True, slots=True)
class Run:
    """One result file."""

    name: str
    result: Mapping[str, Any]

    @property
    def complete_sessions(self) -> dict[str, Mapping[str, Any]]:
        return {s["session"]: s for s in self.result["samples"]["sessions"] if s["is_complete"]}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one run against the base. `ratio` below 1: the run is faster; `low`, `high` bound 95% of draws.

    `faster` and `slower` count pairs by sign. Means are over the pairs, in seconds.
    """

    metric: str
    num_pairs: int
    base_mean_s: float
    mean_s: float
    ratio: float | None
    low: float | None
    high: float | None
    faster: int
    slower: int


@dataclass(frozen=True, slots=True)
class Report:
    """A run against the base. `session_pairs` are completion seconds (base, run) by session id."""

    base: Run
    run: Run
    comparisons: tuple[Comparison, ...]
    session_pairs: dict[str, tuple[float, float]]
    notes: tuple[str, ...]


def load_run(path: str) -> Run:
    """Read a result of `agentinfer replay --json`. Raises AgentInferError when it is not one."""
    try:
        result = orjson.loads(Path(path).read_bytes())
    except OSError as error:
        raise AgentInferError(f"{path}: cannot be read: {error.strerror or error}") from error
    except orjson.JSONDecodeError as error:
        raise AgentInferError(f"{path}: not JSON ({error}); expected a file of `agentinfer replay --json`") from error
    found = (result.get("format"), result.get("version")) if isinstance(result, dict) else None
    if found != (RESULT_FORMAT, RESULT_VERSION):
        raise AgentInferError(
            f"{path}: expected format {RESULT_FORMAT!r} version {RESULT_VERSION}, as `agentinfer replay --json` "
            f"writes it, got {found}"
        )
    return Run(Path(path).name.removesuffix(".json"), result)


def compare(base: Run, run: Run, seed: int = 0) -> Report:
    """Pair the two runs. Raises AgentInferError when they share no complete session."""
    ours, theirs = base.complete_sessions, run.complete_sessions
    shared = [name for name in ours if name in theirs and ours[name]["turns"] == theirs[name]["turns"]]
    if not shared:
        raise AgentInferError(
            f"{base.name} and {run.name} share no session that is complete in both with as many turns; "
            "compare runs of the same trace with the same limits"
        )
    comparisons = []
    for label, kind, key in _METRICS:
        pairs = _pairs(base, run, kind, key, set(shared))
        if pairs:
            comparisons.append(_comparison(label, pairs, seed))
    session_pairs = {n: (ours[n]["completion_s"], theirs[n]["completion_s"]) for n in shared}
    return Report(base, run, tuple(comparisons), session_pairs, tuple(_notes(base, run, len(shared))))


def text(report: Report) -> str:
    """The comparison as a table with its notes."""
    header = ("", report.base.name, report.run.name, "ratio", "95% interval", "faster", "slower", "pairs")
    rows = [
        (
            f"{c.metric}, mean s",
            table.figure(c.base_mean_s),
            table.figure(c.mean_s),
            "-" if c.ratio is None else f"{c.ratio:.3f}",
            "-" if c.low is None or c.high is None else f"{c.low:.3f} to {c.high:.3f}",
            str(c.faster),
            str(c.slower),
            str(c.num_pairs),
        )
        for c in report.comparisons
    ]
    for label, key in _WHOLE_RUN:
        before, after = report.base.result.get(key), report.run.result.get(key)
        ratio = f"{after / before:.3f}" if before and after is not None else "-"
        rows.append((label, table.figure(before), table.figure(after), ratio, "", "", "", ""))
    return "\n".join([table.render(header, rows), *(f"note: {note}" for note in report.notes)])


def _pairs(base: Run, run: Run, kind: str, key: str, shared: set[str]) -> dict[str, list[tuple[float, float]]]:
    """Pairs of seconds by session."""

    def by_id(which: Run) -> dict[tuple[str, int], float]:
        samples = which.result["samples"][kind]
        return {
            (s["session"], s.get("turn", 0)): s[key]
            for s in samples
            if s["session"] in shared and s.get(key) is not None and "error" not in s
        }

    before, after = by_id(base), by_id(run)
    pairs: dict[str, list[tuple[float, float]]] = {}
    for identity, value in before.items():
        if identity in after:
            pairs.setdefault(identity[0], []).append((value, after[identity]))
    return pairs


def _comparison(label: str, pairs: Mapping[str, Sequence[tuple[float, float]]], seed: int) -> Comparison:
    flat = np.array([pair for session in pairs.values() for pair in session], dtype=np.float64)
    sums = np.array([np.sum(session, axis=0) for session in pairs.values()], dtype=np.float64)
    base_total, total = flat.sum(axis=0)
    ratio = low = high = None
    if base_total > 0:
        ratio = float(total / base_total)
        draws = np.random.default_rng(seed).integers(len(sums), size=(NUM_DRAWS, len(sums)))
        drawn = sums[draws].sum(axis=1)
        drawn = drawn[drawn[:, 0] > 0]
        low, high = (float(v) for v in np.percentile(drawn[:, 1] / drawn[:, 0], _COVERAGE_PERCENT))
    return Comparison(
        metric=label,
        num_pairs=len(flat),
        base_mean_s=float(base_total / len(flat)),
        mean_s=float(total / len(flat)),
        ratio=ratio,
        low=low,
        high=high,
        faster=int((flat[:, 1] < flat[:, 0]).sum()),
        slower=int((flat[:, 1] > flat[:, 0]).sum()),
    )


def _notes(base: Run, run: Run, num_shared: int) -> list[str]:
    notes = []
    for which in (base, run):
        left_out = len(which.result["samples"]["sessions"]) - num_shared
        if left_out:
            notes.append(f"{left_out} sessions of {which.name} have no complete partner and are left out")
        if which.result.get("errors"):
            notes.append(f"{which.name} had {which.result['errors']} failed turns")
        if which.result.get("forced_mismatches"):
            notes.append(f"{which.name}: {which.result['forced_mismatches']} forced replies were not as recorded")
    if num_shared < _FEW_SESSIONS:
        notes.append(f"{num_shared} session pairs are too few for the interval to be trusted")
    ours, theirs = (which.result.get("options", {}) for which in (base, run))
    differing = [key for key in _SAME_OPTIONS if ours.get(key) != theirs.get(key)]
    if differing:
        notes.append(f"the runs differ in their settings: {', '.join(differing)}")
    if _trace(base) != _trace(run):
        notes.append("the runs come from different trace files; sessions are paired by id only")
    return notes


def _trace(run: Run) -> Any:
    return run.result.get("provenance", {}).get("trace", {}).get("sha256")
