"""Prompts computed ahead on request: one job a session, the newest; cancelled between pieces, limited in number.

Where a session's prompts grow, what the last job left in the cache is not stepped through piece by piece, but in longer
steps: were it evicted meanwhile, one of these would be computed at once, and not the whole.
"""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from array import array
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentinfer.clock import Clock
from agentinfer.metrics import PrefillMetrics
from agentinfer.runtime.exchange import App, Scope
from agentinfer.runtime.prefill.door import Asked, DoorError, PromptDoor, chat_scope
from agentinfer.runtime.prefill.engine import IDENTITY, Prompt, compute
from agentinfer.runtime.prefill.warming import SLACK_TOKENS, Pace, Stride, Warmed, WarmingError, common_length, warm
from agentinfer.runtime.prefill.wish import Wish
from agentinfer.runtime.refusals import RefusedRequest
from agentinfer.runtime.scheduling.channel import SchedulerChannel

# Sessions of which is known what was computed ahead; the one not asked for the longest goes first.
MAX_KNOWN_SESSIONS: Final = 256
# What was computed ahead before is looked at in steps of so many pieces.
LOOK_PIECES: Final = 8

Piece = Callable[[int], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What came of a job. `cached_tokens` of the prompt were found in the cache, `computed_tokens` were not; together
    they are less than `prompt_tokens` where the job ended early. `ended` says how: `completed`, `superseded` (by a
    newer one of the session), `cancelled`, `client_gone`, `turn` (the session's own turn began), or `no_room`.
    """

    session: str
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    seconds: float
    completed: bool
    ended: str


@dataclass(slots=True)
class Job:
    """One request on its way. `task` ends with a `Prefilled` or raises RefusedRequest; `work` is what of it can be
    cancelled, which `PrefillService.stop` does. The first `done_tokens` of the prompt are in the cache."""

    session_id: str
    wish: Wish = field(repr=False)
    scope: Scope = field(repr=False)
    ended: str = "completed"
    prompt_tokens: int = 0
    done_tokens: int = 0
    computed_tokens: int = 0
    task: asyncio.Task[Prefilled] = field(init=False, repr=False)
    work: asyncio.Task[None] | None = field(default=None, repr=False)


class PrefillService:
    """Lives on the HTTP server's event loop; not thread-safe."""

    def __init__(
        self,
        max_jobs: int,
        pace: Pace,
        manager: Any,
        clock: Clock,
        metrics: PrefillMetrics,
        channel: SchedulerChannel | None = None,
    ) -> None:
        """`manager` is SGLang's tokenizer manager. `channel` is there where sessions are scheduled: what is computed
        ahead is then a session of its own, until the session it is for has had a turn."""
        self._max_jobs = max_jobs
        self._pace = pace
        self._manager = manager
        self._clock = clock
        self._metrics = metrics
        self._channel = channel
        self._door: PromptDoor | None = None
        self._stride = Stride()
        self._jobs: dict[str, Job] = {}
        self._known: OrderedDict[str, array[int]] = OrderedDict()
        # Of which the scheduler has a session of its own, until it is told that this is over.
        self._ahead: set[str] = set()
        self._ends: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()

    def serve_through(self, app: App) -> None:
        """`app` is what our middleware wraps; before the first request."""
        self._door = PromptDoor(app)

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
            self.stop(running, "superseded")
        job = Job(session_id, wish, scope)
        # In a context of its own: what runs for the job is nobody's turn.
        job.task = asyncio.create_task(self._run(job, running), context=contextvars.Context())
        self._jobs[session_id] = job
        return job

    def stop(self, job: Job, ended: str) -> None:
        """Ends a job after the piece that is in the engine; nothing where it has ended."""
        if job.ended == "completed":
            job.ended = ended
            if job.work is not None:
                job.work.cancel()

    def forget(self, session_id: str) -> bool:
        """What was computed ahead for the session is not wanted any more; whether there was anything."""
        job = self._jobs.get(session_id)
        if job is not None:
            self.stop(job, "cancelled")
        return self._release(session_id) or job is not None

    def turn_begun(self, session_id: str) -> None:
        """A turn of the session is on its way: it computes for itself what is missing."""
        self._pace.turn_begun()
        job = self._jobs.get(session_id)
        if job is not None:
            self.stop(job, "turn")

    def turn_finished(self, session_id: str) -> None:
        """A turn of the session has ended; what it used of what was computed ahead is its own from now on."""
        self._pace.turn_finished()
        self._end_ahead(session_id)

    def session_gone(self, session_id: str) -> None:
        """No further turn of the session is expected."""
        self.forget(session_id)

    def close(self) -> None:
        """The server ends."""
        for job in self._jobs.values():
            self.stop(job, "cancelled")

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
        prompt = await self._prompt(job)
        ids, session_id = prompt.ids, job.session_id
        job.prompt_tokens = len(ids)

        async def piece(num_tokens: int) -> int:
            # The engine is given one piece at a time, so one that is there is waited for even by who gives up.
            running = asyncio.ensure_future(compute(prompt, num_tokens, _ahead(session_id), self._clock.monotonic_s()))
            try:
                await asyncio.wait((running,))
            finally:
                if not running.done():
                    await asyncio.wait((running,))
                if running.exception() is None:
                    job.computed_tokens += running.result()
                    job.done_tokens = num_tokens
            return running.result()

        if self._channel is not None:
            self._ahead.add(session_id)
            self._channel.turn_begun()  # the scheduler's time goes on while pieces wait
        try:
            found = await self._found(common_length(ids, self._known.get(session_id, ())), piece)
            await warm(ids, Warmed(ids[:found]), self._pace, self._stride, piece)
        except ValueError as error:
            raise RefusedRequest(400, f"{job.wish.source}: the engine refused it: {error}", job.wish.source) from None
        finally:
            if self._channel is not None:
                self._channel.turn_finished()
            self._know(session_id, ids[: job.done_tokens])
            if job.ended == "cancelled":
                self._release(session_id)

    async def _found(self, known_tokens: int, piece: Piece) -> int:
        """How many of the tokens that were computed ahead before are in the cache; where some were evicted, the end of
        the step that computed them."""
        done = 0
        while done < known_tokens:
            end = min(known_tokens, done + LOOK_PIECES * self._stride.num_tokens)
            computed, _ = await self._pace.run(lambda end=end: piece(end))  # type: ignore[misc]
            done = end
            if computed > SLACK_TOKENS:
                break
        return done

    async def _prompt(self, job: Job) -> Prompt:
        wish = job.wish
        if wish.source == "messages":
            assert self._door is not None, "a request before the server started up"
            asked = Asked.of(chat_scope(job.scope), wish.body)
            try:
                prompt = await (self._door.exact if wish.is_exact else self._door.prompt)(asked, wish.prompt)
            except DoorError as error:
                raise RefusedRequest(400 if error.status < 500 else 500, f"messages: {error}", "messages") from None
        else:
            ids = wish.prompt if wish.source == "input_ids" else self._manager.tokenizer.encode(wish.prompt)
            identity = {name: wish.body[name] for name in IDENTITY if wish.body.get(name) is not None}
            prompt = Prompt(tuple(ids), identity, self._manager)
        self._check(prompt.ids, wish.source)
        return prompt

    def _check(self, ids: Sequence[int], source: str) -> None:
        room = self._manager.max_req_input_len
        if len(ids) >= room:
            raise RefusedRequest(
                400,
                f"{source}: expected less than {room} tokens, for which the engine has room, got {len(ids)}",
                source,
            )
        vocab_size = self._manager.model_config.vocab_size
        if max(ids, default=0) >= vocab_size:
            raise RefusedRequest(
                400, f"{source}: expected token ids below {vocab_size}, the vocabulary's size, got {max(ids)}", source
            )

    def _know(self, session_id: str, ids: Sequence[int]) -> None:
        if not ids:
            return
        self._known[session_id] = array("i", ids)
        self._known.move_to_end(session_id)
        while len(self._known) > MAX_KNOWN_SESSIONS:
            self._release(next(iter(self._known)))

    def _release(self, session_id: str) -> bool:
        self._end_ahead(session_id)
        return self._known.pop(session_id, None) is not None

    def _end_ahead(self, session_id: str) -> None:
        if self._channel is not None and session_id in self._ahead:
            self._ahead.discard(session_id)
            self._channel.session_gone(_ahead(session_id))


def _ahead(session_id: str) -> str:
    """What the scheduler calls the session whose KV is computed ahead."""
    return f"{session_id}~ahead"
