"""The compression of every session's memory: what a request is given, and what is prepared when a turn has ended.

The state machine of a session is `compress.CompressionJob`; here its commands are carried out, as tasks of the HTTP
server's event loop. Whatever fails in them ends a job, and the session goes on with its client's own words.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from agentinfer.clock import Clock
from agentinfer.compress.assignment import assignment_of
from agentinfer.compress.composition import Composition
from agentinfer.compress.distiller import Distiller
from agentinfer.compress.job import Command, CompressionJob, Distil, Ended, State, Warm
from agentinfer.compress.model_distiller import Counts
from agentinfer.compress.settings import Settings
from agentinfer.compress.sizes import Sizes
from agentinfer.compress.store import CompositionStore
from agentinfer.messages import Conversation, Message, Reply
from agentinfer.metrics import CompressionMetrics
from agentinfer.runtime.compression.door import AppDoor, Asked
from agentinfer.runtime.exchange import App, Scope
from agentinfer.runtime.prefill.engine import compute
from agentinfer.runtime.prefill.warming import Pace, Stride, Warmed, common_length, warm
from agentinfer.runtime.scheduling.channel import SchedulerChannel
from agentinfer.runtime.turns import FollowedTurn

logger = logging.getLogger(__name__)

ChooseDistiller = Callable[[AppDoor, Asked], Distiller]


@dataclass(slots=True)
class _Session:
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


class CompressionService:
    """Lives on the HTTP server's event loop; not thread-safe."""

    def __init__(
        self,
        settings: Settings,
        store: CompositionStore,
        choose_distiller: ChooseDistiller,
        clock: Clock,
        metrics: CompressionMetrics,
        counts: Counts,
        channel: SchedulerChannel | None = None,
    ) -> None:
        """`counts` are those of the model's notes. `channel` is there where sessions are scheduled: what is computed
        ahead is then a session of its own."""
        self._settings = settings
        self._store = store
        self._choose_distiller = choose_distiller
        self._clock = clock
        self._metrics = metrics
        self._counts = counts
        self._channel = channel
        self._door: AppDoor | None = None
        self._pace = Pace(clock)
        self._stride = Stride()
        self._sessions: dict[str, _Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()

    def serve_through(self, app: App) -> None:
        """`app` is what our middleware wraps; before the first request."""
        self._door = AppDoor(app)

    def turn_begun(self) -> None:
        """A turn of any session is on its way to the engine."""
        self._pace.turn_begun()

    def turn_finished(self) -> None:
        """A turn that was begun has ended, however."""
        self._pace.turn_finished()

    def body_for(self, followed: FollowedTurn, scope: Scope, body: Mapping[str, Any]) -> bytes | None:
        """The body that the engine gets in place of the client's; None where that stays as it is."""
        conversation = followed.conversation
        if conversation.api != "chat":
            return None
        followed.asked = Asked.of(scope, body)
        session = self._sessions.get(followed.session_id)
        swapped: Composition | None = None
        if session is not None:
            swapped, commands = session.job.turn_begins(conversation, self._clock.monotonic_s())
            if swapped is not None:
                self._swap(session, swapped)
            self._obey(session, commands)
        active = swapped or self._store.find(conversation.chain)
        # A client that went back to the very end of what was shortened is better off with its last results.
        if active is None or len(conversation.messages) <= active.covers:
            return None
        composed = orjson.dumps({**body, "messages": active.applied(body["messages"])})
        sizes = Sizes() if session is None else session.job.sizes
        followed.composition = active
        followed.saved_tokens = _saved_tokens(sizes, conversation, active)
        followed.is_swap = session is not None and session.active is not active
        return composed

    def turn_ended(self, followed: FollowedTurn, reply: Reply) -> None:
        """A turn was answered whole."""
        conversation, usage = followed.conversation, followed.usage
        if conversation.api != "chat" or followed.asked is None or usage is None or reply.is_empty:
            return
        if any(message.attachments for message in conversation.messages):
            return  # the KV of images cannot be computed ahead
        session = self._sessions.get(followed.session_id)
        if session is None:
            session = _Session(followed.session_id, CompressionJob(self._settings))
            self._sessions[followed.session_id] = session
        session.active = followed.composition
        if followed.saved_tokens:
            self._totals["saved_tokens"] += followed.saved_tokens
            self._metrics.saved(followed.saved_tokens)
        now_s = self._clock.monotonic_s()
        commands = session.job.turn_ended(
            conversation, reply.message, usage.prompt_tokens, followed.composition, now_s, self._kv_price()
        )
        if session.job.state is not State.IDLE:
            session.history, session.asked = (*conversation.messages, reply.message), followed.asked
        self._obey(session, commands)

    def session_gone(self, session_id: str) -> None:
        """No further turn of the session is expected."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._obey(session, session.job.cancel("the session is over"))
            session.stop()
        self._store.forget_session(session_id)

    def memory(self, session_id: str) -> Composition | None:
        """What was taken out of a session's context, and the notes that stand for it."""
        session = self._sessions.get(session_id)
        active = None if session is None else session.active
        return active or self._store.latest(session_id)

    def close(self) -> None:
        """The server ends."""
        for task in self._tasks:
            task.cancel()

    def status(self) -> dict[str, Any]:
        """Counts since the start."""
        states = Counter(session.job.state.value for session in self._sessions.values())
        return {
            "jobs": dict(self._ends),
            "sessions": {state.value: states[state.value] for state in State if state is not State.IDLE},
            "compositions": len(self._store),
            "size_bytes": self._store.size_bytes,
            "model_notes": asdict(self._counts),
            **{name: self._totals[name] for name in ("taken_results", "saved_tokens", "warmed_tokens", "pieces")},
        }

    def _swap(self, session: _Session, composition: Composition) -> None:
        before = 0 if session.active is None else len(session.active.taken)
        self._totals["taken_results"] += len(composition.taken) - before
        self._store.put(session.session_id, composition)

    def _obey(self, session: _Session, commands: Sequence[Command]) -> None:
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

    def _end(self, session: _Session, ended: Ended) -> None:
        level = logging.INFO if ended.how in ("swapped", "failed", "late") else logging.DEBUG
        why = f": {ended.why}" if ended.why else ""
        logger.log(level, "session %s: compression %d %s%s", session.session_id, ended.job, ended.how, why)
        self._ends[ended.how] += 1
        self._metrics.job(ended.how)
        session.stop()
        if ended.how == "swapped":
            session.warmed = Warmed()  # from now on the turns themselves put it there
        if self._channel is not None:
            self._channel.session_gone(_ahead(session.session_id))

    async def _distil(self, session: _Session, command: Distil) -> None:
        job, asked = session.job, session.asked
        try:
            assert asked is not None, "set with the job"
            distiller = self._choose_distiller(self._inner_app, asked)
            assignment = assignment_of(command.plan, command.messages, job.sizes.tokens_per_char)
            note = await asyncio.wait_for(distiller.distil(assignment), self._settings.distil_timeout_s)
            commands = job.noted(command.job, note, session.history, self._clock.monotonic_s())
        except Exception as error:
            commands = job.failed(command.job, f"no note: {type(error).__name__}: {error}")
        self._metrics.dropped_lines(self._counts.dropped_lines)
        self._obey(session, commands)

    async def _warm(self, session: _Session, command: Warm) -> None:
        job, asked, door = session.job, session.asked, self._inner_app
        warmed, channel = session.warmed, self._channel
        before = (warmed.computed_tokens, warmed.num_pieces)
        if channel is not None:
            channel.turn_begun()  # the scheduler's time goes on while its pieces wait
        try:
            assert asked is not None, "set with the job"
            prompt = await door.prompt(asked, command.messages)
            session_id = _ahead(session.session_id)

            async def piece(num_tokens: int) -> int:
                computed = await compute(prompt, num_tokens, session_id, self._clock.monotonic_s())
                job.progressed(command.job, self._clock.monotonic_s())
                return computed

            num_known = 0
            if not common_length(prompt.ids, warmed.ids):
                # What the turns themselves have put there: all before the first result that is taken.
                own = session.history if session.active is None else session.active.sent(session.history)
                now = await door.prompt(asked, tuple(message.as_openai() for message in own))
                num_known = common_length(prompt.ids, now.ids)
            await warm(prompt.ids, warmed, self._pace, self._stride, piece, num_known)
            commands = job.warmed(command.job, len(command.messages))
        except Exception as error:
            commands = job.failed(command.job, f"{type(error).__name__}: {error}")
        finally:
            if channel is not None:
                channel.turn_finished()
            computed = warmed.computed_tokens - before[0]
            self._totals["warmed_tokens"] += computed
            self._totals["pieces"] += warmed.num_pieces - before[1]
            self._metrics.warmed(computed)
        self._obey(session, commands)

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

    def _kv_price(self) -> float:
        figures = None if self._channel is None else self._channel.status()
        price = None if figures is None else figures.get("price")
        return float(price) if isinstance(price, int | float) else 0.0


def _ahead(session_id: str) -> str:
    """What the scheduler calls the session whose KV is computed ahead."""
    return f"{session_id}~composed"


def _saved_tokens(sizes: Sizes, conversation: Conversation, composition: Composition) -> int:
    composed = Conversation.from_body("/v1/chat/completions", {"messages": list(composition.messages)})
    assert composed is not None
    own = conversation.messages[: composition.covers]
    return max(0, sizes.messages(own) - sizes.messages(composed.messages))
