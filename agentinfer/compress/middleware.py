"""Compression inside an agent's own loop: call it before and behind each model call; it never makes either wait.

    memory = MemoryCompressor(ExtractiveDistiller())
    reply = await model(await memory.before_model("s1", history), tools=[*tools, memory.recall_tool()])
    memory.after_model("s1", history, reply)

The history stays the agent's, whole: what `before_model` gives back goes to the model and nowhere else. There is no KV
to warm here, so a note swaps in at the first call after it is there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agentinfer.compress.assignment import assignment_of
from agentinfer.compress.distiller import Distiller
from agentinfer.compress.job import Command, CompressionJob, Distil, Ended, Warm
from agentinfer.compress.memory import Observation
from agentinfer.compress.recall import found, recall_tool, recalled
from agentinfer.compress.settings import Settings
from agentinfer.compress.store import CompositionStore
from agentinfer.messages import Conversation, Message
from agentinfer.messages.content import chat_message

logger = logging.getLogger(__name__)

OpenAIMessage = Mapping[str, Any]
_SESSION_BYTES: Final = 32 << 20
_MAX_SESSIONS: Final = 1024


@dataclass(slots=True)
class _Session:
    """`history` is the latest, its last reply included; `distilling` is the job's task, cancelled with it.

    Compositions are a session's own: another's history may begin alike, but has its own ids to recall.
    """

    job: CompressionJob
    compositions: CompositionStore
    history: tuple[Message, ...] = ()
    distilling: asyncio.Task[None] | None = field(default=None, repr=False)


class MemoryCompressor:
    """Any number of sessions, each known by the caller's name for it. For one event loop; not thread-safe.

    Whatever goes wrong (a distiller that fails or hangs, an edited history, a bug of ours) leaves a session with its
    own messages. Beyond 1024 sessions the one unused the longest is closed.
    """

    def __init__(
        self,
        distiller: Distiller,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._distiller = distiller
        self._settings = replace(settings or Settings(), warm_share=0.0)  # no KV is waited for
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    async def before_model(self, session_id: str, messages: Sequence[Any]) -> list[Any]:
        """The messages for the model: composed, or as they came. `messages` is the whole history; it is not changed."""
        try:
            return self._composed(session_id, messages)
        except Exception:  # an agent must not fail for a shorter prompt's sake
            logger.exception("session %s: its history could not be composed and goes out as it came", session_id)
            return list(messages)

    def after_model(
        self, session_id: str, messages: Sequence[Any], reply: OpenAIMessage, prompt_tokens: int | None = None
    ) -> None:
        """The model answered `reply` to the history `messages`. May start a job on the running event loop.

        `prompt_tokens`: what the endpoint counted in the prompt it got, as in its reply's `usage`.
        """
        try:
            self._turn_ended(session_id, messages, reply, prompt_tokens)
        except Exception:
            logger.exception("session %s: nothing will be compressed behind this turn", session_id)

    def recall(self, session_id: str, obs_id: str) -> str:
        """The text of a result that was taken out, as it was. Raises ValueError for what is no id, KeyError for an
        unknown one."""
        return found(self._taken(session_id), obs_id)

    def recall_tool(self) -> dict[str, Any]:
        """A tool to offer to the model, so that it can read again what its notes only name."""
        return recall_tool()

    def handle_recall(self, session_id: str, arguments: str | Mapping[str, Any]) -> str:
        """Answers a call of `recall_tool`. A wrong call is answered by what is wrong with it; nothing is raised."""
        return recalled(self._taken(session_id), arguments)

    def close(self, session_id: str | None = None) -> None:
        """Ends the jobs of one session, or of all, and forgets what was taken out of them."""
        for name in list(self._sessions) if session_id is None else [session_id]:
            session = self._sessions.pop(name, None)
            if session is not None:
                self._follow(name, session, session.job.cancel("closed"))

    def _taken(self, session_id: str) -> Mapping[int, Observation]:
        session = self._sessions.get(session_id)
        latest = session.compositions.latest(session_id) if session is not None else None
        return latest.taken if latest is not None else {}

    def _composed(self, session_id: str, messages: Sequence[Any]) -> list[Any]:
        conversation = _conversation(messages)
        if conversation is None:
            return list(messages)
        session = self._session(session_id)
        composition, commands = session.job.turn_begins(conversation, self._clock())
        if composition is not None:
            session.compositions.put(session_id, composition)
        self._follow(session_id, session, commands)
        active = session.compositions.find(conversation.chain)
        return list(messages) if active is None else active.applied(messages)

    def _turn_ended(
        self, session_id: str, messages: Sequence[Any], reply: OpenAIMessage, prompt_tokens: int | None
    ) -> None:
        conversation = _conversation(messages)
        if conversation is None:
            return
        session = self._session(session_id)
        active = session.compositions.find(conversation.chain)
        if prompt_tokens is None:
            composed = messages if active is None else active.applied(messages)
            prompt_tokens = session.job.sizes.messages(map(chat_message, composed))
        said = chat_message(reply)
        session.history = (*conversation.messages, said)
        commands = session.job.turn_ended(conversation, said, prompt_tokens, active, self._clock())
        self._follow(session_id, session, commands)

    def _session(self, session_id: str) -> _Session:
        session = self._sessions.get(session_id)
        if session is None:
            session = _Session(CompressionJob(self._settings), CompositionStore(_SESSION_BYTES))
            self._sessions[session_id] = session
            if len(self._sessions) > _MAX_SESSIONS:
                self.close(next(iter(self._sessions)))
        self._sessions.move_to_end(session_id)
        return session

    def _follow(self, session_id: str, session: _Session, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Distil):
                distilling = asyncio.get_running_loop().create_task(self._distil(session_id, session, command))
                session.distilling = distilling
            elif isinstance(command, Warm):
                self._follow(session_id, session, session.job.warmed(command.job, len(command.messages)))
            elif isinstance(command, Ended):
                if session.distilling is not None and session.distilling is not _current_task():
                    session.distilling.cancel()
                session.distilling = None
                if command.how not in ("swapped", "cancelled"):
                    logger.info("session %s: compression %d ended: %s %s", session_id, command.job, command.how,
                                command.why)  # fmt: skip

    async def _distil(self, session_id: str, session: _Session, command: Distil) -> None:
        job = session.job
        try:
            assignment = assignment_of(command.plan, command.messages, job.sizes.tokens_per_char)
            async with asyncio.timeout(self._settings.distil_timeout_s):
                note = await self._distiller.distil(assignment)
            commands = job.noted(command.job, note, session.history, self._clock())
        except asyncio.CancelledError:
            self._follow(session_id, session, job.failed(command.job, "cancelled"))
            raise
        except Exception as error:
            commands = job.failed(command.job, f"{type(error).__name__}: {error}")
        self._follow(session_id, session, commands)


def _conversation(messages: Sequence[Any]) -> Conversation | None:
    return Conversation.from_body("/v1/chat/completions", {"messages": list(messages)})


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # closed outside of a loop
        return None
