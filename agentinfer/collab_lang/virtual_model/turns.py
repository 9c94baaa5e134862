"""A turn from its beginning, when it is decided who speaks, to its end, when the work between the turns begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from agentinfer.clock import Clock
from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.hand_over import EscalationRate, HandOvers
from agentinfer.collab_lang.trajectory import UNAVAILABLE, Choice
from agentinfer.collab_lang.virtual_model.checks import Checks
from agentinfer.collab_lang.virtual_model.collab_session import CollabSession, CollabSessions, Question, Read
from agentinfer.collab_lang.virtual_model.engine import Engine
from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings
from agentinfer.collab_lang.virtual_model.warming import Warming
from agentinfer.hints import AgentHints
from agentinfer.messages import Conversation, Reply
from agentinfer.metrics import CollabMetrics
from agentinfer.sessions import Outcome, SessionTable, Turn, TurnUsage

# Reasons besides the controller's own and `UNAVAILABLE`.
PINNED: Final = "pinned"
CONCURRENT: Final = "concurrent_turn"


@dataclass(slots=True)
class OpenTurn:
    """A turn under way. `is_step`: it is one of the trajectory, not one beside another turn of its session.

    `lost_models` were to speak and could not, the first of them by the controller's choice; `tried_models` were asked.
    """

    session: CollabSession
    turn: Turn
    choice: Choice
    is_step: bool
    size_bytes: int
    lost_models: tuple[Model, ...] = ()
    tried_models: tuple[Model, ...] = ()
    is_resumed: bool = False
    is_over: bool = False

    def about(self) -> dict[str, Any]:
        """What the response says of it, in the field `agentinfer`."""
        told: dict[str, Any] = {"model": self.choice.model.value, "reason": self.choice.reason}
        told |= {"step": self.choice.step, "session": self.session.session_id}
        if self.lost_models:
            told["unavailable"] = [model.value for model in self.lost_models]
        if self.is_resumed:
            told["taken_up_mid_reply"] = True
        return {"collab": told}

    def headers(self) -> dict[str, str]:
        return {"x-agentinfer-model": self.choice.model.value, "x-agentinfer-reason": self.choice.reason}


class Turns:
    """Owns the sessions and all that runs between their turns. Lives on one event loop."""

    def __init__(
        self,
        engines: Mapping[Model, Engine],
        settings: FrontSettings,
        clock: Clock,
        ids: Callable[[], str],
        metrics: CollabMetrics,
    ) -> None:
        self.engines = engines
        self.sessions = CollabSessions(settings.collab)
        self.table = SessionTable(
            settings.max_sessions,
            settings.session_expiry_s,
            clock,
            ids,
            settings.max_session_bytes,
            self.sessions.gone,
        )
        self.hand_overs = HandOvers()
        self.escalations = EscalationRate()
        self._metrics = metrics
        self.checks = Checks(settings, clock, metrics)
        self._warming = Warming(engines, self.escalations, metrics) if settings.warms else None
        self._warms_in_turns = settings.warms_in_turns

    def begin(
        self, hints: AgentHints, conversation: Conversation, size_bytes: int, pinned: Model | None = None
    ) -> OpenTurn:
        """`size_bytes`: of the request. Whoever gets a turn must end it, by `end` or `give_up`."""
        # With both believed down it is tried all the same: what lives is only asked at intervals.
        available = [model for model, engine in self.engines.items() if engine.is_up] or list(self.engines)
        turn = self.table.begin_turn(hints, conversation)
        session = self.sessions.of(turn)
        is_step = not session.is_stepping
        choice = self._step(session, available) if is_step else self._beside(session, available)
        if pinned is not None:
            found = pinned if pinned in available else pinned.other
            choice = Choice(choice.step, found, PINNED if found is pinned else UNAVAILABLE)
        if is_step:
            session.is_stepping = True
            if not self._warms_in_turns or session.warming_model is choice.model:
                session.stop_warming()
            self.checks.turn_begins(session, choice.step, choice.model)
        lost = (choice.model.other,) if choice.reason == UNAVAILABLE else ()
        return OpenTurn(session, turn, choice, is_step, size_bytes, lost)

    def read_along(self, turn: OpenTurn, body: Mapping[str, Any]) -> None:
        """The turn, which answers the chat `body`, is about to be asked for: the silent model may read its prompt."""
        if self._warming is not None and self._warms_in_turns and turn.is_step:
            self._warming.consider_prompt(turn.session, turn.choice.model, body, turn.size_bytes)

    def move(self, turn: OpenTurn, is_mid_reply: bool) -> bool:
        """The engine of a turn is lost: the other one speaks, unless it was asked before.

        One that is believed down is asked, too: nobody else is left, and it may be back since the last look at it.
        """
        lost = turn.choice.model
        self._metrics.failover(lost, is_mid_reply)
        turn.tried_models = (*turn.tried_models, lost)
        turn.lost_models = (*(model for model in turn.lost_models if model is not lost.other), lost)
        if lost.other in turn.tried_models:
            return False
        turn.choice = Choice(turn.choice.step, lost.other, UNAVAILABLE)
        if turn.is_step and turn.session.warming_model is lost.other:
            turn.session.stop_warming()
        turn.is_resumed = turn.is_resumed or is_mid_reply
        return True

    def end(self, turn: OpenTurn, body: Mapping[str, Any], reply: Reply, usage: TurnUsage | None) -> None:
        """The reply to the chat `body` is whole, and not yet with the client to its end."""
        if turn.is_over:
            return
        turn.is_over = True
        session, speaker = turn.session, turn.choice.model
        session.is_stepping = session.is_stepping and not turn.is_step
        self._metrics.step(speaker, turn.choice.reason)
        self._note_hand_over(turn, usage)
        step = session.trajectory.end_step(speaker) if turn.is_step else None
        self.table.finish_turn(turn.turn, reply, usage, "ok")
        if step is None:
            return
        message = reply.message.as_openai()
        session.size_bytes = turn.size_bytes + len(reply.text) + sum(len(c.arguments_text) for c in reply.tool_calls)
        num_tokens = usage.prompt_tokens + usage.completion_tokens if usage is not None else session.size_bytes // 4
        session.read[speaker] = Read(num_tokens, session.size_bytes)
        session.read[speaker.other].ahead_tokens = None
        session.last_speaker = speaker
        if self.sessions.get(session.session_id) is session:
            self._between_turns(session, step, speaker, body, message, num_tokens)

    def give_up(self, turn: OpenTurn, outcome: Outcome, partial: Reply | None = None) -> None:
        """The turn has no whole reply: its client is gone, no engine could answer, or the engine refused it."""
        if turn.is_over:
            return
        turn.is_over = True
        turn.session.is_stepping = turn.session.is_stepping and not turn.is_step
        if outcome == "error":
            self.table.abandon(turn.turn)
        else:
            self.table.finish_turn(turn.turn, partial, None, outcome)

    async def engine_found(self, engine: Engine) -> None:
        """An engine answers that was not known, or was down: what it had read may be gone with its process."""
        for session in self.sessions:
            session.forget_read(engine.role)
        await self.checks.rehearse(engine)

    def close(self) -> None:
        self.sessions.close()

    def _step(self, session: CollabSession, available: list[Model]) -> Choice:
        trajectory = session.trajectory
        before = trajectory.state.steps
        choice = trajectory.begin_step(available)
        if trajectory.state.steps > before:
            closed = trajectory.transitions[-1]
            self._metrics.verdict(closed.speaker, closed.verdict)
            if closed.speaker is Model.SMALL:
                self.escalations.observe(closed.next_model is Model.LARGE)
        return choice

    def _beside(self, session: CollabSession, available: list[Model]) -> Choice:
        state = session.trajectory.state
        if state.model in available:
            return Choice(state.steps, state.model, CONCURRENT)
        return Choice(state.steps, state.model.other, UNAVAILABLE)

    def _note_hand_over(self, turn: OpenTurn, usage: TurnUsage | None) -> None:
        session, speaker = turn.session, turn.choice.model
        if usage is None:
            return
        engine = self.engines[speaker]
        engine.reports_cache = engine.reports_cache or engine.is_ours or usage.cached_tokens > 0
        if not turn.is_step or session.last_speaker in (None, speaker) or turn.is_resumed or not engine.reports_cache:
            return
        read = session.read[speaker]
        if read.ahead_tokens is not None:
            fresh = usage.prompt_tokens - read.ahead_tokens
        else:
            fresh = round(usage.prompt_tokens * (turn.size_bytes - session.size_bytes) / max(1, turn.size_bytes))
        unseen, computed = self.hand_overs.unseen_tokens, self.hand_overs.computed_tokens
        self.hand_overs.add(usage.prompt_tokens, usage.cached_tokens, read.tokens, max(0, fresh))
        self._metrics.switch(
            speaker, self.hand_overs.unseen_tokens - unseen, self.hand_overs.computed_tokens - computed
        )

    def _between_turns(
        self,
        session: CollabSession,
        step: int,
        speaker: Model,
        body: Mapping[str, Any],
        message: Mapping[str, Any],
        num_tokens: int,
    ) -> None:
        if self.checks.is_on:
            on_judged = partial(self._judged, session, step, speaker, body, message, num_tokens)
            self.checks.start(session, Question(step, self.engines[speaker], body, message, on_judged))
        if self._warming is not None:
            self._warming.consider(session, speaker, body, message, num_tokens)

    def _judged(
        self,
        session: CollabSession,
        step: int,
        speaker: Model,
        body: Mapping[str, Any],
        message: Mapping[str, Any],
        num_tokens: int,
    ) -> None:
        """With the verdict it is known who is next, if the next turn has not come already."""
        if self._warming is None or session.is_stepping or session.trajectory.state.steps != step:
            return
        next_model = session.trajectory.fork().finish().model
        if next_model is not speaker:
            self._warming.consider(session, speaker, body, message, num_tokens, is_decided=True)
