"""Serving recorded sessions with a drafter, and counting what it was worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns, process_time_ns

from benchmarks.drafting.calibration import Calibration
from benchmarks.drafting.drafter import Drafter, Tokens
from benchmarks.drafting.sessions import TokenSession, TokenTrace
from benchmarks.drafting.verify import accepted_path, check_draft


@dataclass(slots=True)
class Tally:
    """Counts of one session. `output_tokens` are all tokens of its replies, the end-of-turn token included.

    The first token of a reply comes from prefill, so verify steps emit `output_tokens - turns` of them. Times are of
    the drafter alone, by the clock: `index_ns` at a turn's start, `draft_ns` and `update_ns` (taking in verified
    tokens) of its steps, `finish_ns` at its end. `turn_cpu_ns` is the processor time of start and end, by all threads:
    a drafter that indexes in a thread of its own is waited for, and on a busy machine waiting outlasts the work.
    """

    id: str
    is_repeat: bool = False
    turns: int = 0
    steps: int = 0
    output_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    index_ns: int = 0
    draft_ns: int = 0
    update_ns: int = 0
    finish_ns: int = 0
    turn_cpu_ns: int = 0
    accepted_per_step: dict[int, int] = field(default_factory=dict)


def serve(trace: TokenTrace, drafter: Drafter, budget: int, calibration: Calibration) -> Iterator[Tally]:
    """All sessions, in order, by one drafter that remembers what it will."""
    seen: set[str] = set()
    for session in trace.sessions:
        tally = serve_session(session, drafter, budget, calibration)
        tally.is_repeat = session.task in seen
        seen.add(session.task)
        yield tally


def serve_leaving_out(
    trace: TokenTrace, make_drafter: Callable[[], Drafter], budget: int, calibration: Calibration
) -> Iterator[Tally]:
    """The first session of each task, by a drafter that has learnt every session of the other tasks and no more."""
    served: set[str] = set()
    for session in trace.sessions:
        if session.task in served:
            continue
        served.add(session.task)
        drafter = make_drafter()
        for other in trace.sessions:
            if other.task != session.task:
                drafter.learn(list(other.exchanges()))
        tally = serve_session(session, drafter, budget, calibration)
        del drafter  # before the next one is made, or two memories count as one drafter's
        yield tally


def serve_session(session: TokenSession, drafter: Drafter, budget: int, calibration: Calibration) -> Tally:
    tally = Tally(session.id)
    drafter.start_session(session.id)
    for prompt, reply in session.exchanges():
        tally.turns += 1
        tally.output_tokens += len(reply)
        tally.index_ns += _timed(tally, partial(drafter.start_turn, prompt))
        serve_reply(drafter, reply, budget, tally, calibration)
        tally.finish_ns += _timed(tally, drafter.end_turn)
    tally.finish_ns += _timed(tally, drafter.end_session)
    return tally


def serve_reply(drafter: Drafter, reply: Tokens, budget: int, tally: Tally, calibration: Calibration) -> None:
    """The verify steps of a turn, the token from prefill taken in first."""
    truth = reply.tolist()
    started = perf_counter_ns()
    drafter.accept(reply[:1])
    tally.update_ns += perf_counter_ns() - started
    place = 1
    while place < len(truth):
        started = perf_counter_ns()
        drafted = drafter.draft(budget)
        tally.draft_ns += perf_counter_ns() - started

        draft = drafter.tree(drafted)
        check_draft(draft, budget)
        path = accepted_path(draft, truth[place : place + budget])
        emitted = reply[place : place + len(path) + 1]
        place += len(emitted)
        tally.steps += 1
        tally.drafted_tokens += len(draft.tokens) - 1
        tally.accepted_tokens += len(path)
        tally.accepted_per_step[len(path)] = tally.accepted_per_step.get(len(path), 0) + 1
        calibration.add(draft, path)

        started = perf_counter_ns()
        drafter.accept(emitted)
        tally.update_ns += perf_counter_ns() - started


def _timed(tally: Tally, call: Callable[[], None]) -> int:
    """Nanoseconds by the clock."""
    cpu_before, before = process_time_ns(), perf_counter_ns()
    call()
    taken = perf_counter_ns() - before
    tally.turn_cpu_ns += process_time_ns() - cpu_before
    return taken
