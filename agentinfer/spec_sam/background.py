"""One thread that indexes prompts beside the decode path, so that no token waits for an index.

A job is a series of chunks, each a call of about a millisecond that releases the interpreter lock for most of it. Jobs
of one key run in the order of their submission; between keys the thread takes turns chunk by chunk, so that a short
turn does not wait for a long prompt. A full queue refuses jobs instead of growing: that request decodes without drafts.
A job that takes less time than handing it over can be run by its submitter, if the key's earlier jobs have ended.
"""

from __future__ import annotations

import enum
import logging
import os
import sys
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Final

logger = logging.getLogger(__name__)

Chunk = Callable[[], object]

_STOP_TIMEOUT_S: Final = 5.0


class JobState(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REFUSED = "refused"  # the queue was full, or the builder stopped


class Job:
    """Submitted work. `done` can be read at any time without waiting; once True, what the chunks wrote is visible."""

    __slots__ = ("_chunks", "_queue", "done", "key", "state")

    def __init__(self, key: Hashable, chunks: Iterator[Chunk], queue: _Queue) -> None:
        self.key = key
        self.state = JobState.WAITING
        self.done = False
        self._chunks: Iterator[Chunk] | None = chunks  # dropped when the job ends, with all that it holds
        self._queue = queue

    def cancel(self) -> bool:
        """No chunk starts from now on. False: a chunk is still running, until `ended` says otherwise. A job that has
        ended stays as it ended."""
        return self._queue.cancel(self)

    @property
    def ended(self) -> bool:
        """No chunk runs and none will."""
        return self._chunks is None


class BackgroundBuilder:
    """Runs jobs in one daemon thread, started when it is first needed and stopped with the builder or the interpreter.

    Any thread may call any method; none waits for a chunk but `drain` and `stop`. At most `max_jobs` are unfinished at
    a time. `niceness` is added to the thread's own on Linux, so that on few cores the decode path goes first.
    """

    def __init__(self, max_jobs: int = 1024, *, niceness: int = 10) -> None:
        if max_jobs < 1:
            raise ValueError(f"max_jobs is {max_jobs}; expected at least 1")
        self._queue = _Queue(max_jobs)
        self._niceness = niceness
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()

    def submit(self, key: Hashable, chunks: Iterable[Chunk], *, at_once: int = 0) -> Job:
        """Queues `chunks` behind the key's other jobs. The iterable is advanced in the thread, one chunk at a time. An
        exception from a chunk, or from the iterable, is logged and ends this job alone.

        Where the key has no other job, the first `at_once` chunks are run here instead, before this returns."""
        coming = iter(chunks)
        job = Job(key, coming, self._queue)
        if at_once and self._queue.claim(job):
            outcome = None
            while outcome is None and at_once and job.state is JobState.RUNNING:
                outcome = _run_chunk(job, coming)
                at_once -= 1
            self._queue.put_back(job, outcome)
            if not job.ended:
                self._ensure_started()
        elif self._queue.put(job):
            self._ensure_started()
        return job

    def cancel(self, key: Hashable) -> None:
        """Cancels every unfinished job of the key."""
        self._queue.cancel_key(key)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Waits until every job has ended. False if some had not after `timeout_s`."""
        return self._queue.wait_empty(timeout_s)

    def stop(self) -> None:
        """Cancels what waits, lets the running chunk finish, ends the thread. Later jobs are refused."""
        with self._start_lock:
            _close_and_join(self._queue, self._thread)

    @property
    def num_unfinished(self) -> int:
        return self._queue.num_unfinished

    @property
    def counts(self) -> dict[str, int]:
        """Jobs that ended, by how: done, cancelled, failed, refused."""
        return self._queue.counts()

    def check_integrity(self) -> None:
        """Raises AssertionError naming the broken rule."""
        self._queue.check_integrity()

    def _ensure_started(self) -> None:
        with self._start_lock:
            if self._thread is None:
                # The thread knows the queue only, so that a forgotten builder is collected and stops it. It must not
                # outlive the interpreter: a native call that came back to a finalised one would abort the process.
                self._thread = threading.Thread(
                    target=_work, args=(self._queue, self._niceness), name="agentinfer-index", daemon=True
                )
                weakref.finalize(self, _close_and_join, self._queue, self._thread)
                self._thread.start()


class _Queue:
    """Jobs by key and the keys in turn; shared by the callers and the thread. Every change happens under one lock."""

    def __init__(self, max_jobs: int) -> None:
        self._max_jobs = max_jobs
        self._lock = threading.Lock()
        self._has_turns = threading.Condition(self._lock)
        self._is_idle = threading.Condition(self._lock)
        self._by_key: dict[Hashable, deque[Job]] = {}  # unfinished jobs; each key's first is the one to run
        self._turns: deque[Hashable] = deque()  # keys with jobs, but not those of which a chunk is running
        self._running: dict[Hashable, Job] = {}  # by key; the thread's, and those run by their submitters
        self._counts: Counter[JobState] = Counter()
        self._is_closed = False
        self.num_unfinished = 0

    def put(self, job: Job) -> bool:
        with self._lock:
            if self._is_closed or self.num_unfinished >= self._max_jobs:
                self._end(job, JobState.REFUSED)
                job._chunks = None
                return False
            self.num_unfinished += 1
            jobs = self._by_key.get(job.key)
            if jobs is None:
                self._by_key[job.key] = deque([job])
                if job.key not in self._running:  # else `put_back` gives the turn
                    self._give_turn(job.key)
            else:
                jobs.append(job)
            return True

    def claim(self, job: Job) -> bool:
        """Whether the caller runs it now; then `put_back` must follow."""
        with self._lock:
            is_next = job.key not in self._by_key and job.key not in self._running
            if self._is_closed or self.num_unfinished >= self._max_jobs or not is_next:
                return False
            self.num_unfinished += 1
            self._by_key[job.key] = deque([job])
            job.state = JobState.RUNNING
            self._running[job.key] = job
            return True

    def next_job(self) -> tuple[Job, Iterator[Chunk]] | None:
        """The job whose chunk is to run now, waiting for one; None when closed. `put_back` must follow."""
        with self._lock:
            while not self._turns:
                if self._is_closed:
                    return None
                self._has_turns.wait()
            job = self._by_key[self._turns.popleft()][0]
            assert job._chunks is not None
            job.state = JobState.RUNNING
            self._running[job.key] = job
            return job, job._chunks

    def put_back(self, job: Job, outcome: JobState | None) -> None:
        """After a chunk: `outcome` is None where chunks may be left. A cancellation in the meantime prevails."""
        with self._lock:
            if job.state is JobState.RUNNING and outcome is not None:
                self._remove(job)
                self._end(job, outcome)
            del self._running[job.key]
            if job.state is not JobState.RUNNING:
                job._chunks = None
            if job.key in self._by_key:
                self._give_turn(job.key)
            self._tell_if_idle()

    def cancel(self, job: Job) -> bool:
        with self._lock:
            if job.state in (JobState.WAITING, JobState.RUNNING):
                self._cancel(job)
                self._tell_if_idle()
            return self._running.get(job.key) is not job

    def cancel_key(self, key: Hashable) -> None:
        with self._lock:
            for job in list(self._by_key.get(key, ())):
                self._cancel(job)
            self._tell_if_idle()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for job in [job for jobs in self._by_key.values() for job in jobs]:
                self._cancel(job)
            self._has_turns.notify_all()
            self._tell_if_idle()

    def wait_empty(self, timeout_s: float | None) -> bool:
        with self._lock:
            return self._is_idle.wait_for(lambda: not self.num_unfinished and not self._running, timeout_s)

    def counts(self) -> dict[str, int]:
        with self._lock:
            return {state.value: count for state, count in self._counts.items()}

    def check_integrity(self) -> None:
        with self._lock:
            jobs = [job for jobs in self._by_key.values() for job in jobs]
            assert len(jobs) == self.num_unfinished <= self._max_jobs, "num_unfinished is not the number of queued jobs"
            assert all(self._by_key.values()), "a key without jobs is kept"
            assert len(set(self._turns)) == len(self._turns), "a key has two turns"
            assert set(self._turns) == set(self._by_key) - set(self._running), "a key with jobs has no turn"
            assert all(job.state in (JobState.WAITING, JobState.RUNNING) for job in jobs), "an ended job is queued"
            assert not any(job.done for job in jobs), "an unfinished job is said to be done"

    def _cancel(self, job: Job) -> None:
        self._remove(job)
        self._end(job, JobState.CANCELLED)
        if self._running.get(job.key) is not job:
            job._chunks = None

    def _remove(self, job: Job) -> None:
        jobs = self._by_key[job.key]
        jobs.remove(job)
        self.num_unfinished -= 1
        if not jobs:
            del self._by_key[job.key]
            if job.key not in self._running:
                self._turns.remove(job.key)

    def _give_turn(self, key: Hashable) -> None:
        self._turns.append(key)
        self._has_turns.notify()

    def _tell_if_idle(self) -> None:
        if not self.num_unfinished and not self._running:
            self._is_idle.notify_all()

    def _end(self, job: Job, state: JobState) -> None:
        job.state = state
        job.done = state is JobState.DONE
        self._counts[state] += 1


def _work(queue: _Queue, niceness: int) -> None:
    _lower_priority(niceness)
    while (turn := queue.next_job()) is not None:
        queue.put_back(turn[0], _run_chunk(*turn))
        del turn  # hold nothing while waiting


def _run_chunk(job: Job, chunks: Iterator[Chunk]) -> JobState | None:
    """How the job ended, or None where chunks may be left."""
    try:
        for chunk in chunks:
            chunk()
            return None
    except BaseException:  # SystemExit included: one request's trouble must not end the indexing of all others
        logger.exception("indexing for %r failed; that request decodes without drafts", job.key)
        return JobState.FAILED
    return JobState.DONE


def _lower_priority(niceness: int) -> None:
    if niceness and sys.platform == "linux":  # elsewhere a thread has no niceness of its own
        thread_id = threading.get_native_id()
        try:
            os.setpriority(os.PRIO_PROCESS, thread_id, os.getpriority(os.PRIO_PROCESS, thread_id) + niceness)
        except OSError as error:
            logger.debug("the indexing thread keeps its priority: %s", error)


def _close_and_join(queue: _Queue, thread: threading.Thread | None) -> None:
    queue.close()
    if thread is not None and thread is not threading.current_thread():
        thread.join(_STOP_TIMEOUT_S)
