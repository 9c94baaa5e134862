"""Carrying out what a session's state machine commands: notes and KV are made in tasks beside the turns.

Whatever fails in a task ends its job, and the session goes on with its client's own words.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentinfer.clock import Clock
from agentinfer.compress.assignment import assignment_of
from agentinfer.compress.composition import Composition
from agentinfer.compress.distiller import Distiller
from agentinfer.compress.hidden import chain_of
from agentinfer.compress.job import Command, CompressionJob, Distil, Ended, State, Warm
from agentinfer.messages import Message
from agentinfer.metrics import CompressionMetrics
from agentinfer.runtime.compression.door import AppDoor, Asked
from agentinfer.runtime.exchange import App
from agentinfer.runtime.prefill.engine import compute
from agentinfer.runtime.prefill.warming import Pace, Stride, Warmed, common_length, warm
from agentinfer.runtime.scheduling.channel import SchedulerChannel

if TYPE_CHECKING:
    from agentinfer.runtime.compression.recall.offer import Recall

logger = logging.getLogger(__name__)

ChooseDistiller = Callable[[AppDoor, Asked], Distiller]


@dataclass(slots=True)
class SessionJob:
    """One session; freed by `session_gone`. `history` and `asked` are its latest, while a job needs them; `active` is
    the composition that its last turn had."""

    session_id: str
    job: CompressionJob
    active: Composition | None = None
    history: tuple[Message, ...] = field(default=(), repr=False)
    asked: Asked | None = None
    distilling: asyncio.Task[None] | None = None
    warming: asyncio.Task[None] | None = None
    warmed: Warmed = field(default_factory=Warmed)

    def stop(self) -> None:
        """Cancels what runs for the job."""
        current = asyncio.current_task()
        for task in (self.distilling, self.warming):
            if task is not None and task is not current:
                task.cancel()
        self.distilling = self.warming = None


class JobRunner:
    """Lives on the HTTP server's event loop; not thread-safe. `num_dropped_lines` tells how many lines of models' notes
    were left out since the start."""

    def __init__(
        self,
        choose_distiller: ChooseDistiller,
        distil_timeout_s: float,
        num_dropped_lines: Callable[[], int],
        clock: Clock,
        pace: Pace,
        metrics: CompressionMetrics,
        channel: SchedulerChannel | None,
        recall: Recall | None,
    ) -> None:
        self._choose_distiller = choose_distiller
        self._distil_timeout_s = distil_timeout_s
        self._num_dropped_lines = num_dropped_lines
        self._clock = clock
        self._pace = pace
        self._metrics = metrics
        self._channel = channel
        self._recall = recall
        self._door: AppDoor | None = None
        self._stride = Stride()
        self._tasks: set[asyncio.Task[None]] = set()
        self.ends: Counter[str] = Counter()
        self.warmed_tokens = 0
        self.num_pieces = 0

    def serve_through(self, app: App) -> None:
        """`app` is what our middleware wraps; before the first request."""
        self._door = AppDoor(app)

    async def settled(self) -> None:
        """Until no task runs."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """The server ends."""
        for task in self._tasks:
            task.cancel()

    def obey(self, session: SessionJob, commands: Sequence[Command]) -> None:
        """Carries out what the session's machine has commanded."""
        for command in commands:
            match command:
                case Distil():
                    session.distilling = self._spawn(self._distil(session, command))
                case Warm():
                    if session.warming is not None:
                        session.warming.cancel()
                    session.warming = self._spawn(self._warm(session, command))
                case Ended():
                    self._end(session, command)
        # Only now: the command after an end may be the next job's.
        if session.job.state is State.IDLE:
            session.history, session.asked = (), None

    def _end(self, session: SessionJob, ended: Ended) -> None:
        level = logging.INFO if ended.how in ("swapped", "failed", "late") else logging.DEBUG
        why = f": {ended.why}" if ended.why else ""
        logger.log(level, "session %s: compression %d %s%s", session.session_id, ended.job, ended.how, why)
        self.ends[ended.how] += 1
        self._metrics.job(ended.how)
        session.stop()
        if ended.how == "swapped":
            session.warmed = Warmed()  # from now on the turns themselves put it there
        if self._channel is not None:
            self._channel.session_gone(_ahead(session.session_id))

    async def _distil(self, session: SessionJob, command: Distil) -> None:
        job, asked = session.job, session.asked
        try:
            assert asked is not None, "set with the job"
            distiller = self._choose_distiller(self._inner_app, asked)
            assignment = assignment_of(command.plan, command.messages, job.sizes.tokens_per_char)
            note = await asyncio.wait_for(distiller.distil(assignment), self._distil_timeout_s)
            commands = job.noted(command.job, note, session.history, self._clock.monotonic_s())
        except Exception as error:
            commands = job.failed(command.job, f"no note: {type(error).__name__}: {error}")
        self._metrics.dropped_lines(self._num_dropped_lines())
        self.obey(session, commands)

    async def _warm(self, session: SessionJob, command: Warm) -> None:
        job, asked, door = session.job, session.asked, self._inner_app
        warmed, channel = session.warmed, self._channel
        before = (warmed.computed_tokens, warmed.num_pieces)
        if channel is not None:
            channel.turn_begun()  # the scheduler's time goes on while its pieces wait
        try:
            assert asked is not None, "set with the job"
            prompt = await door.prompt(*self._as_sent(job.composition, asked, session.history))
            session_id = _ahead(session.session_id)

            async def piece(num_tokens: int) -> int:
                computed = await compute(prompt, num_tokens, session_id, self._clock.monotonic_s())
                job.progressed(command.job, self._clock.monotonic_s())
                return computed

            num_known = 0
            if not common_length(prompt.ids, warmed.ids):
                # What the turns themselves have put there: all before the first result that is taken.
                now = await door.prompt(*self._as_sent(session.active, asked, session.history))
                num_known = common_length(prompt.ids, now.ids)
            await warm(prompt.ids, warmed, self._pace, self._stride, piece, num_known)
            commands = job.warmed(command.job, len(command.messages))
        except Exception as error:
            commands = job.failed(command.job, f"{type(error).__name__}: {error}")
        finally:
            if channel is not None:
                channel.turn_finished()
            computed = warmed.computed_tokens - before[0]
            self.warmed_tokens += computed
            self.num_pieces += warmed.num_pieces - before[1]
            self._metrics.warmed(computed)
        self.obey(session, commands)

    def _as_sent(
        self, composition: Composition | None, asked: Asked, history: Sequence[Message]
    ) -> tuple[Asked, list[Any]]:
        """How a turn that goes on from a history is asked with a composition, and its messages."""
        messages = [message.as_openai() for message in history]
        if composition is None:
            return asked, messages
        if self._recall is None:
            return asked, composition.applied(messages)
        return self._recall.asked(asked), self._recall.sent(composition, messages, chain_of(history))

    @property
    def _inner_app(self) -> AppDoor:
        assert self._door is not None, "a turn before the server started up"
        return self._door

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In a context of its own: a turn is bound in that of the request which has just ended.
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _ahead(session_id: str) -> str:
    """What the scheduler calls the session whose KV is computed ahead."""
    return f"{session_id}~composed"
