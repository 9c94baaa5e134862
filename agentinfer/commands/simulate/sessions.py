"""The sessions to simulate: a trace of either kind, cut, repeated and put in order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from agentinfer.commands.simulate import recorded, timing
from agentinfer.commands.simulate.counting import TokenCount
from agentinfer.radix_ext.simulator import SimSession, fits, repeated
from agentinfer.replay import read_trace
from agentinfer.replay.traces.files import load


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace's sessions. `token_counts` says where their numbers of tokens come from."""

    name: str
    sha256: str
    sessions: tuple[SimSession, ...]
    token_counts: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """Sessions in the order in which they begin; `too_long` of them are left out, as they fit into no replica."""

    sessions: tuple[SimSession, ...]
    too_long: int


def read_workload(
    name: str, counter: TokenCount | None = None, default_gap_s: float = 0.0, max_gap_s: float | None = None
) -> Workload:
    """Read any trace that `agentinfer replay` reads, or one of token counts and times. Gaps are cut to `max_gap_s`.

    Raises TraceError naming file, line and field.
    """
    if not name.startswith("bfcl:") and not Path(name).is_dir():
        file = load(Path(name))
        if timing.matches(_first_object(file.data)):
            sessions = timing.read(file, max_gap_s)
            return Workload(Path(name).name, file.sha256, tuple(sessions), "as recorded")
    trace = read_trace(name)
    counter = counter or TokenCount()
    counted = (recorded.sim_session(session, counter, default_gap_s, max_gap_s) for session in trace.sessions)
    return Workload(Path(name).name, trace.sha256, tuple(counted), counter.source)


def choose(sessions: Sequence[SimSession], count: int | None, seed: int | None, kv_tokens: int) -> Chosen:
    """`count` of the sessions, repeated from the start where there are fewer; a seed shuffles them."""
    wanted = list(repeated(tuple(sessions), len(sessions) if count is None else count))
    if seed is not None:
        random.Random(seed).shuffle(wanted)
    fitting = tuple(session for session in wanted if fits(session, kv_tokens))
    return Chosen(fitting, len(wanted) - len(fitting))


def _first_object(data: bytes) -> dict[str, object]:
    """Empty where the first line is none: then the trace's own reader says what is wrong."""
    line = next((line for line in data.split(b"\n", 64) if line.strip()), b"")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
