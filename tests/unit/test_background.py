"""The indexing thread: order, turns, cancellation, failures, a full queue, and leaving without a trace."""

from __future__ import annotations

import gc
import logging
import os
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentinfer.spec_sam.background import BackgroundBuilder, Job, JobState

WAIT_S = 10.0


class Gate:
    """A chunk that says when it has started and ends when told to."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.started.set()
        assert self.opened.wait(WAIT_S)


@pytest.fixture
def builder() -> Iterator[BackgroundBuilder]:
    builder = BackgroundBuilder(max_jobs=8, niceness=0)
    yield builder
    builder.stop()


@pytest.fixture
def gate(builder) -> Iterator[Gate]:
    """Keeps the thread busy, so that what is submitted in the meantime waits."""
    gate = Gate()
    builder.submit("gate", [gate])
    assert gate.started.wait(WAIT_S)
    yield gate
    gate.opened.set()


def finish(builder: BackgroundBuilder, gate: Gate | None = None) -> None:
    if gate is not None:
        gate.opened.set()
    assert builder.drain(WAIT_S)
    builder.check_integrity()


def writes(log: list[object], *entries: object) -> list[Callable[[], None]]:
    return [lambda entry=entry: log.append(entry) for entry in entries]


def test_a_job_is_done_after_its_last_chunk_only(builder):
    first, last = Gate(), Gate()
    job = builder.submit("a", [first, last])
    for gate in (first, last):
        assert gate.started.wait(WAIT_S)
        assert (job.done, job.ended, job.state) == (False, False, JobState.RUNNING)
        gate.opened.set()
    finish(builder)
    assert (job.done, job.ended, job.state) == (True, True, JobState.DONE)


def test_a_job_without_chunks_is_done(builder):
    job = builder.submit("a", [])
    finish(builder)
    assert job.done


def test_chunks_are_made_in_the_thread_one_at_a_time(builder, gate):
    threads = []

    def chunks() -> Iterator[Callable[[], None]]:
        threads.append(threading.current_thread().name)
        yield lambda: None
        threads.append(threading.current_thread().name)

    builder.submit("a", chunks())
    assert threads == []
    finish(builder, gate)
    assert threads == ["agentinfer-index"] * 2


def test_keys_take_turns_and_jobs_of_a_key_do_not(builder, gate):
    log: list[object] = []
    builder.submit("a", writes(log, "a1", "a2"))
    builder.submit("a", writes(log, "a3"))
    builder.submit("b", writes(log, "b1", "b2"))
    finish(builder, gate)
    assert log == ["a1", "b1", "a2", "b2", "a3"]


def test_what_is_run_at_once_is_done_on_return_in_the_callers_thread(builder):
    threads: list[str] = []
    job = builder.submit("a", [lambda: threads.append(threading.current_thread().name)] * 3, at_once=4)
    assert (job.done, job.ended, job.state) == (True, True, JobState.DONE)
    assert threads == [threading.current_thread().name] * 3
    assert builder.counts == {"done": 1}
    builder.check_integrity()
    assert builder._thread is None  # it was not needed


def test_the_rest_of_what_began_at_once_runs_in_the_thread(builder):
    threads: list[str] = []
    job = builder.submit("a", [lambda: threads.append(threading.current_thread().name)] * 3, at_once=2)
    finish(builder)
    assert job.done
    assert threads == [threading.current_thread().name] * 2 + ["agentinfer-index"]


def test_nothing_overtakes_the_keys_earlier_jobs(builder, gate):
    log: list[object] = []
    builder.submit("a", writes(log, "a1"))
    builder.submit("a", writes(log, "a2"), at_once=9)
    builder.submit("b", writes(log, "b1"), at_once=9)
    builder.submit("gate", writes(log, "behind the gate"), at_once=9)
    assert log == ["b1"]
    builder.check_integrity()
    finish(builder, gate)
    assert log.index("a1") < log.index("a2")
    assert "behind the gate" in log


def test_jobs_of_a_key_wait_for_one_that_its_submitter_runs(builder):
    """Submitted from within: the thread may not begin them before the chunk has ended."""
    log: list[object] = []

    def chunk() -> None:
        builder.submit("a", writes(log, "inner"))
        builder.submit("a", writes(log, "inner at once"), at_once=9)
        builder.submit("b", writes(log, "other"), at_once=9)
        builder.check_integrity()
        log.append("outer")

    builder.submit("a", [chunk], at_once=9)
    finish(builder)
    assert log == ["other", "outer", "inner", "inner at once"]


def test_a_job_cancelled_while_it_runs_at_once_goes_no_further(builder):
    log: list[object] = []
    job = builder.submit("a", [lambda: builder.cancel("a"), *writes(log, "more")], at_once=9)
    assert (job.state, job.ended, log) == (JobState.CANCELLED, True, [])
    finish(builder)
    assert log == []


def test_a_failure_at_once_is_logged_and_not_the_submitters(builder, caplog):
    with caplog.at_level(logging.ERROR):
        job = builder.submit("bad", [lambda: 1 // 0, lambda: None], at_once=9)
    assert job.state is JobState.FAILED
    assert "'bad'" in caplog.text
    finish(builder)


@settings(max_examples=60, deadline=None)
@given(jobs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=24))
def test_jobs_of_a_key_run_in_the_order_of_submission(jobs):
    builder = BackgroundBuilder(max_jobs=len(jobs) + 1, niceness=0)
    log: list[tuple[int, int, int]] = []
    submitted: list[tuple[Job, list[tuple[int, int, int]]]] = []
    for number, (key, num_chunks, is_cancelled) in enumerate(jobs):
        entries = [(key, number, index) for index in range(num_chunks)]
        submitted.append((builder.submit(key, writes(log, *entries)), entries))
        if is_cancelled:
            submitted[number // 2][0].cancel()
        builder.check_integrity()
    finish(builder)
    builder.stop()
    for key in range(4):
        ran = [entry for entry in log if entry[0] == key]
        assert ran == sorted(ran)
    for job, entries in submitted:
        ran = [entry for entry in log if entry in entries]
        assert ran == entries[: len(ran)]
        assert job.done == (job.state is JobState.DONE)
        assert not job.done or ran == entries
    assert sum(builder.counts.values()) == len(jobs)


def test_a_cancelled_job_that_waits_never_runs(builder, gate):
    log: list[object] = []
    job = builder.submit("a", writes(log, "a"))
    other = builder.submit("b", writes(log, "b"))
    assert job.cancel()
    assert (job.ended, job.state) == (True, JobState.CANCELLED)
    finish(builder, gate)
    assert (log, job.done, other.done) == (["b"], False, True)


def test_cancelling_during_a_chunk_lets_it_finish_and_starts_no_other(builder):
    gate, log = Gate(), []
    job = builder.submit("a", [gate, *writes(log, "late")])
    assert gate.started.wait(WAIT_S)
    assert not job.cancel()
    assert not job.ended
    assert not job.cancel(), "the chunk still runs"
    finish(builder, gate)
    assert job.ended
    assert job.cancel()
    assert (job.done, job.state, log) == (False, JobState.CANCELLED, [])


def test_drain_waits_for_the_chunk_of_a_cancelled_job(builder):
    gate = Gate()
    job = builder.submit("a", [gate])
    assert gate.started.wait(WAIT_S)
    job.cancel()
    assert builder.num_unfinished == 0
    assert not builder.drain(0.0)
    finish(builder, gate)


def test_a_key_can_be_used_again_while_its_cancelled_chunk_runs(builder):
    gate, log = Gate(), []
    builder.submit("a", [gate])
    assert gate.started.wait(WAIT_S)
    builder.cancel("a")
    again = builder.submit("a", writes(log, 1, 2))
    builder.check_integrity()
    finish(builder, gate)
    assert (again.done, log) == (True, [1, 2])


def test_cancelling_a_key_cancels_all_its_jobs_and_no_others(builder, gate):
    jobs = [builder.submit("a", []), builder.submit("a", []), builder.submit("b", [])]
    builder.cancel("a")
    builder.cancel("unknown")
    finish(builder, gate)
    assert [job.state for job in jobs] == [JobState.CANCELLED, JobState.CANCELLED, JobState.DONE]


def test_cancelling_a_job_that_has_ended_changes_nothing(builder):
    job = builder.submit("a", [])
    finish(builder)
    assert job.cancel()
    assert (job.done, builder.counts) == (True, {"done": 1})


def failing_iterable() -> Iterator[Callable[[], None]]:
    yield lambda: None
    raise RuntimeError("no such tokens")


def failing_chunk(error: BaseException) -> Callable[[], None]:
    def chunk() -> None:
        raise error

    return chunk


@pytest.mark.parametrize(
    "chunks",
    [
        lambda: [failing_chunk(MemoryError("no such tokens")), lambda: pytest.fail("ran on")],
        lambda: [failing_chunk(SystemExit("no such tokens"))],
        lambda: [failing_chunk(StopIteration("no such tokens"))],
        failing_iterable,
    ],
    ids=["chunk", "exit", "stop iteration", "iterable"],
)
def test_a_failing_job_is_logged_once_and_harms_no_other(builder, gate, caplog, chunks):
    bad = builder.submit("a", chunks())
    good = builder.submit("a", [lambda: None])
    with caplog.at_level(logging.DEBUG):
        finish(builder, gate)
    assert (bad.state, bad.done, bad.ended, good.done) == (JobState.FAILED, False, True, True)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "'a'" in caplog.text
    assert "no such tokens" in caplog.text


def test_a_full_queue_refuses_and_takes_jobs_again_later(builder, gate):
    log: list[object] = []
    waiting = [builder.submit(number, []) for number in range(7)]
    refused = builder.submit("late", writes(log, "late"))
    assert (refused.done, refused.ended, refused.state) == (False, True, JobState.REFUSED)
    assert refused.cancel()
    builder.cancel(0)
    assert builder.submit("later", []).state is JobState.WAITING
    finish(builder, gate)
    assert (log, [job.done for job in waiting]) == ([], [False] + [True] * 6)
    assert builder.counts == {"done": 8, "cancelled": 1, "refused": 1}


def test_a_builder_must_hold_a_job():
    with pytest.raises(ValueError, match="at least 1"):
        BackgroundBuilder(max_jobs=0)


def test_drain_gives_up_after_its_timeout(builder, gate):
    assert not builder.drain(0.01)


def test_stopping_cancels_what_waits_and_refuses_what_comes(builder, gate):
    waiting = builder.submit("a", [])
    gate.opened.set()
    builder.stop()
    builder.check_integrity()
    assert waiting.state in (JobState.CANCELLED, JobState.DONE)
    assert builder.submit("b", []).state is JobState.REFUSED
    assert not any(thread.name == "agentinfer-index" for thread in threading.enumerate())


def test_a_builder_that_was_never_used_has_no_thread():
    before = threading.active_count()
    builder = BackgroundBuilder()
    assert threading.active_count() == before
    builder.stop()


def test_a_forgotten_builder_ends_its_thread():
    builder = BackgroundBuilder(niceness=0)
    builder.submit("a", [])
    assert builder.drain(WAIT_S)
    thread = builder._thread
    assert thread is not None
    del builder
    gc.collect()
    thread.join(WAIT_S)
    assert not thread.is_alive()


class Prompt:
    """Something that can be watched with a weak reference."""


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["done", "cancelled"])
def test_an_ended_job_holds_nothing(builder, gate, is_cancelled):
    prompt = Prompt()
    alive = weakref.ref(prompt)
    job = builder.submit("a", [lambda prompt=prompt: None])
    del prompt
    if is_cancelled:
        job.cancel()
    finish(builder, gate)
    builder.submit("next", [])  # the thread has let go of the last job once it turns to the next one
    finish(builder)
    gc.collect()
    assert alive() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux threads have a niceness of their own")
def test_the_thread_is_nicer_than_the_process():
    builder = BackgroundBuilder(niceness=3)
    seen = []
    builder.submit("a", [lambda: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))])
    assert builder.drain(WAIT_S)
    builder.stop()
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert seen == [min(own + 3, 19)]


LEAVE = """
import numpy as np
from agentinfer.spec_sam import Automaton
from agentinfer.spec_sam.background import BackgroundBuilder

tokens = np.random.default_rng(0).integers(0, 50, 100_000).astype(np.int32)
automata = [Automaton() for _ in range(4)]
builder = BackgroundBuilder()
for number, automaton in enumerate(automata):
    builder.submit(number, ((lambda automaton=automaton: automaton.extend(tokens)) for _ in range(1000)))
while not len(automata[-1].tokens):
    pass
"""


def test_the_interpreter_leaves_cleanly_in_the_middle_of_native_work():
    result = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_many_threads_submit_and_cancel():
    builder = BackgroundBuilder(max_jobs=40, niceness=0)
    num_threads, num_jobs = 4, 400
    log: list[tuple[int, int, int]] = []
    jobs: list[list[Job]] = [[] for _ in range(num_threads)]
    problems: list[BaseException] = []

    def client(thread: int) -> None:
        rng = random.Random(thread)
        try:
            for number in range(num_jobs):
                key = (thread, rng.randrange(3))
                entries = [(*key, number * 10 + index) for index in range(rng.randrange(4))]
                chunks = writes(log, *entries)
                if rng.random() < 0.1:
                    chunks.append(failing_chunk(ValueError("stress")))
                jobs[thread].append(builder.submit(key, chunks))
                if rng.random() < 0.3:
                    rng.choice(jobs[thread]).cancel()
                if rng.random() < 0.05:
                    builder.cancel(key)
                if number % 20 == 0:
                    builder.check_integrity()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(num_threads)]
    logging.getLogger("agentinfer.spec_sam.background").disabled = True
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        finish(builder)
    finally:
        logging.getLogger("agentinfer.spec_sam.background").disabled = False
        builder.stop()
    assert not problems
    for thread in range(num_threads):
        for key in range(3):
            ran = [entry for entry in log if entry[:2] == (thread, key)]
            assert ran == sorted(ran)
    ended = [job for own in jobs for job in own]
    assert all(job.ended for job in ended)
    counts = {state.value: sum(job.state is state for job in ended) for state in JobState}
    assert {name: count for name, count in counts.items() if count} == builder.counts
