"""Prompts computed ahead on request: one job a session, the newest; ended between pieces, limited in number."""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from agentinfer.clock import Clock
from agentinfer.metrics import PrefillMetrics
from agentinfer.runtime.exchange import App, Scope
from agentinfer.runtime.prefill.job import Computer, Job, Prefilled, ahead_id
from agentinfer.runtime.prefill.warming import WarmingError
from agentinfer.runtime.prefill.wish import Wish
from agentinfer.runtime.refusals import RefusedRequest
from agentinfer.runtime.scheduling.channel import SchedulerChannel

# Sessions of which is known what is in the cache; the one not asked for the longest goes first.
MAX_KNOWN_SESSIONS: Final = 256


class PrefillService:
    """Lives on the HTTP server's event loop; not thread-safe."""

    def __init__(
        self,
        max_jobs: int,
        computer: Computer,
        clock: Clock,
        metrics: PrefillMetrics,
        channel: SchedulerChannel | None = None,
    ) -> None:
        """`channel` is there where sessions are scheduled: what is computed ahead is then a session of its own, until
        the session it is for has had a turn."""
        self._max_jobs = max_jobs
        self._computer = computer
        self._clock = clock
        self._metrics = metrics
        self._channel = channel
        self._jobs: dict[str, Job] = {}
        # What the cache was given of each session last; as text where that was a turn's.
        self._known: OrderedDict[str, array[int] | str] = OrderedDict()
        # Of which the scheduler has a session of its own, until it is told that this is over.
        self._ahead: set[str] = set()
        self._ends: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()

    def serve_through(self, app: App) -> None:
        """`app` is what our middleware wraps; before the first request."""
        self._computer.serve_through(app)

    def begin(self, wish: Wish, scope: Scope) -> Job:
        """Starts computing; a job of the same session that runs is superseded. Raises RefusedRequest (503)."""
        session_id = wish.session_id or f"p-{uuid.uuid4().hex[:16]}"
        running = self._jobs.get(session_id)
        if running is None and len(self._jobs) >= self._max_jobs:
            self._metrics.refused()
            raise RefusedRequest(
                503,
                f"{len(self._jobs)} prompts are being computed ahead, which is the most (--agentinfer-prefill-max). "
                "Try again when one has ended, or serve the turn without it",
            )
        if running is not None:
            running.stop("superseded")
        job = Job(session_id, wish, scope)
        # In a context of its own: what runs for the job is nobody's turn.
        job.task = asyncio.create_task(self._run(job, running), context=contextvars.Context())
        self._jobs[session_id] = job
        return job

    def forget(self, session_id: str) -> bool:
        """What was computed ahead for the session is not wanted any more; whether there was anything."""
        job = self._jobs.get(session_id)
        if job is not None:
            job.stop("cancelled")
        return self._release(session_id) or job is not None

    def turn_begun(self, session_id: str) -> None:
        """A turn of the session is on its way: it computes for itself what is missing."""
        job = self._jobs.get(session_id)
        if job is not None:
            job.stop("turn")

    def turn_finished(self, session_id: str, prompt: Sequence[int] | str | None = None) -> None:
        """A turn of the session has ended; what it used of what was computed ahead is its own from now on.

        `prompt` is what of the session is in the cache now, where the engine answered.
        """
        self._end_ahead(session_id)
        if prompt:
            self._know(session_id, prompt)

    def session_gone(self, session_id: str) -> None:
        """No further turn of the session is expected."""
        self.forget(session_id)

    def close(self) -> None:
        """The server ends."""
        for job in self._jobs.values():
            job.stop("cancelled")

    def status(self) -> dict[str, Any]:
        """Counts since the start."""
        return {"running": len(self._jobs), "requests": dict(self._ends), **self._totals}

    async def _run(self, job: Job, before: Job | None) -> Prefilled:
        started_s = self._clock.monotonic_s()
        if before is not None:
            await asyncio.wait((before.task,))
        try:
            if job.ended == "completed":
                job.work = asyncio.create_task(self._compute(job))
                await asyncio.wait((job.work,))
                if not job.work.cancelled():
                    job.work.result()
        except WarmingError:
            job.ended = "no_room"
        except Exception:
            job.ended = "failed"
            raise
        finally:
            if self._jobs.get(job.session_id) is job:
                del self._jobs[job.session_id]
            seconds = self._clock.monotonic_s() - started_s
            self._ends[job.ended] += 1
            self._totals["computed_tokens"] += job.computed_tokens
            self._metrics.ended(job.ended, job.computed_tokens, seconds)
        cached_tokens = max(0, job.done_tokens - job.computed_tokens)
        return Prefilled(
            session=job.session_id,
            prompt_tokens=job.prompt_tokens,
            cached_tokens=cached_tokens,
            computed_tokens=job.computed_tokens,
            seconds=round(seconds, 6),
            completed=job.ended == "completed",
            ended=job.ended,
        )

    async def _compute(self, job: Job) -> None:
        prompt = await self._computer.prompt(job)
        job.prompt_tokens = len(prompt.ids)
        if self._channel is not None:
            self._ahead.add(job.session_id)
            self._channel.turn_begun()  # the scheduler's time goes on while pieces wait
        try:
            await self._computer.compute(job, prompt, self._known_tokens(job.session_id))
        finally:
            if self._channel is not None:
                self._channel.turn_finished()
            self._know(job.session_id, prompt.ids[: job.done_tokens])
            if job.ended == "cancelled":
                self._release(job.session_id)

    def _known_tokens(self, session_id: str) -> Sequence[int]:
        known = self._known.get(session_id, ())
        return self._computer.encoded(known) if isinstance(known, str) else known

    def _know(self, session_id: str, prompt: Sequence[int] | str) -> None:
        if not prompt:
            return
        self._known[session_id] = prompt if isinstance(prompt, str) else array("i", prompt)
        self._known.move_to_end(session_id)
        while len(self._known) > MAX_KNOWN_SESSIONS:
            self._release(next(iter(self._known)))

    def _release(self, session_id: str) -> bool:
        self._end_ahead(session_id)
        return self._known.pop(session_id, None) is not None

    def _end_ahead(self, session_id: str) -> None:
        if self._channel is not None and session_id in self._ahead:
            self._ahead.discard(session_id)
            self._channel.session_gone(ahead_id(session_id))
