"""The compression of every session's memory: what a request is given, and what is prepared when a turn has ended.

The state machine of a session is `compress.CompressionJob`, which is told here of turns; `jobs` carries out what it
commands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

from agentinfer.clock import Clock
from agentinfer.compress.composition import Composition
from agentinfer.compress.job import CompressionJob, State
from agentinfer.compress.model_distiller import Counts
from agentinfer.compress.settings import Settings
from agentinfer.compress.sizes import Sizes
from agentinfer.compress.store import CompositionStore
from agentinfer.messages import Conversation, Reply
from agentinfer.metrics import CompressionMetrics
from agentinfer.runtime.compression.door import Asked
from agentinfer.runtime.compression.jobs import ChooseDistiller, JobRunner, SessionJob
from agentinfer.runtime.exchange import App, Scope
from agentinfer.runtime.prefill.warming import Pace
from agentinfer.runtime.scheduling.channel import SchedulerChannel
from agentinfer.runtime.turns import FollowedTurn

if TYPE_CHECKING:
    from agentinfer.runtime.compression.recall.offer import Recall


class CompressionService:
    """Lives on the HTTP server's event loop; not thread-safe."""

    def __init__(
        self,
        settings: Settings,
        store: CompositionStore,
        choose_distiller: ChooseDistiller,
        clock: Clock,
        pace: Pace,
        metrics: CompressionMetrics,
        counts: Counts,
        channel: SchedulerChannel | None = None,
        recall: Recall | None = None,
    ) -> None:
        """`pace` is the whole server's, `counts` are those of the model's notes. `channel` is there where sessions are
        scheduled: what is computed ahead is then a session of its own. `recall` is there where the server offers that
        tool."""
        self._settings = settings
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._counts = counts
        self._channel = channel
        self._recall = recall
        self._jobs = JobRunner(
            choose_distiller,
            settings.distil_timeout_s,
            lambda: counts.dropped_lines,
            clock,
            pace,
            metrics,
            channel,
            recall,
        )
        self._sessions: dict[str, SessionJob] = {}
        self._totals: Counter[str] = Counter()

    def serve_through(self, app: App) -> None:
        """`app` is what our middleware wraps; before the first request."""
        self._jobs.serve_through(app)

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
            self._jobs.obey(session, commands)
        active = swapped or self._store.find(conversation.chain)
        # A client that went back to the very end of what was shortened is better off with its last results.
        if active is None or len(conversation.messages) <= active.covers:
            return None
        composed = self._composed(followed, active, body)
        sizes = Sizes() if session is None else session.job.sizes
        followed.composition = active
        followed.saved_tokens = _saved_tokens(sizes, conversation, active)
        followed.is_swap = session is not None and session.active is not active
        return orjson.dumps(composed)

    def turn_ended(self, followed: FollowedTurn, reply: Reply) -> None:
        """A turn was answered whole."""
        conversation, usage = followed.conversation, followed.usage
        if conversation.api != "chat" or followed.asked is None or usage is None or reply.is_empty:
            return
        if any(message.attachments for message in conversation.messages):
            return  # the KV of images cannot be computed ahead
        session = self._sessions.get(followed.session_id)
        if session is None:
            session = SessionJob(followed.session_id, CompressionJob(self._settings))
            self._sessions[followed.session_id] = session
        session.active = followed.composition
        if followed.saved_tokens:
            self._totals["saved_tokens"] += followed.saved_tokens
            self._metrics.saved(followed.saved_tokens)
        now_s = self._clock.monotonic_s()
        prompt_tokens = usage.prompt_tokens
        if self._recall is not None and followed.composition is not None:
            # The job knows the client's messages only, and learns from their count how long texts are in tokens.
            prompt_tokens -= self._recall.hidden_tokens(followed.composition, conversation.chain, session.job.sizes)
        commands = session.job.turn_ended(
            conversation, reply.message, max(1, prompt_tokens), followed.composition, now_s, self._kv_price()
        )
        if session.job.state is not State.IDLE:
            session.history, session.asked = (*conversation.messages, reply.message), followed.asked
        self._jobs.obey(session, commands)

    def session_gone(self, session_id: str) -> None:
        """No further turn of the session is expected."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._jobs.obey(session, session.job.cancel("the session is over"))
            session.stop()
        self._store.forget_session(session_id)
        if self._recall is not None:
            self._recall.forget_session(session_id)

    def memory(self, session_id: str) -> Composition | None:
        """What was taken out of a session's context, and the notes that stand for it."""
        session = self._sessions.get(session_id)
        active = None if session is None else session.active
        return active or self._store.latest(session_id)

    def close(self) -> None:
        """The server ends."""
        self._jobs.close()

    async def settled(self) -> None:
        """Until nothing runs beside the turns."""
        await self._jobs.settled()

    def status(self) -> dict[str, Any]:
        """Counts since the start."""
        states = Counter(session.job.state.value for session in self._sessions.values())
        return {
            "jobs": dict(self._jobs.ends),
            "sessions": {state.value: states[state.value] for state in State if state is not State.IDLE},
            "compositions": len(self._store),
            "size_bytes": self._store.size_bytes,
            "model_notes": asdict(self._counts),
            **{name: self._totals[name] for name in ("taken_results", "saved_tokens")},
            "warmed_tokens": self._jobs.warmed_tokens,
            "pieces": self._jobs.num_pieces,
            **({} if self._recall is None else {"recall": self._recall.status()}),
        }

    def _composed(self, followed: FollowedTurn, active: Composition, body: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._recall is None:
            return {**body, "messages": active.applied(body["messages"])}
        messages = self._recall.sent(active, body["messages"], followed.conversation.chain)
        return self._recall.offered(followed, active, {**body, "messages": messages})

    def _swap(self, session: SessionJob, composition: Composition) -> None:
        before = 0 if session.active is None else len(session.active.taken)
        self._totals["taken_results"] += len(composition.taken) - before
        self._store.put(session.session_id, composition)

    def _kv_price(self) -> float:
        figures = None if self._channel is None else self._channel.status()
        price = None if figures is None else figures.get("price")
        return float(price) if isinstance(price, int | float) else 0.0


def _saved_tokens(sizes: Sizes, conversation: Conversation, composition: Composition) -> int:
    composed = Conversation.from_body("/v1/chat/completions", {"messages": list(composition.messages)})
    assert composed is not None
    own = conversation.messages[: composition.covers]
    return max(0, sizes.messages(own) - sizes.messages(composed.messages))
