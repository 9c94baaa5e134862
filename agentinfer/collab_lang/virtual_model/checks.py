"""The checks of the steps that were taken: asked while the agent's tool runs, never waited for.

One check a session at a time. One that still runs when the session's next turn comes is left to run if the same model
speaks in that turn, since its verdict may then count at that step's boundary (see `Trajectory`); the check of that step
waits for it. Where its verdict can count no more it is ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import orjson

from agentinfer.clock import Clock
from agentinfer.collab_lang.check_request import read_answer
from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.progress import Judgement
from agentinfer.collab_lang.settings import Check
from agentinfer.collab_lang.virtual_model.collab_session import CollabSession, Question
from agentinfer.collab_lang.virtual_model.engine import Engine, EngineLost
from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings
from agentinfer.collab_lang.virtual_model.outgoing import check_request
from agentinfer.metrics import CollabMetrics

logger = logging.getLogger(__name__)


class Checks:
    """Asks for them, and gives the answers to their trajectories."""

    def __init__(self, settings: FrontSettings, clock: Clock, metrics: CollabMetrics) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics

    @property
    def is_on(self) -> bool:
        return self._settings.collab.check is not Check.OFF

    async def rehearse(self, engine: Engine) -> None:
        """Has the engine read the grammar before a check needs it: that takes seconds with a large vocabulary."""
        if not self.is_on:
            return
        messages, reply = [{"role": "user", "content": "Ready?"}], {"role": "assistant", "content": "Yes."}
        request = check_request({"messages": messages}, reply, engine, "collab-rehearsal", self._settings.collab)
        with suppress(EngineLost, TimeoutError):
            await self._ask(engine, {**request, "max_tokens": 1}, {})

    def start(self, session: CollabSession, question: Question) -> None:
        """Have the engine that spoke judge its step, after the check that still runs, where one does."""
        if session.is_checking:
            session.next_question = question
        else:
            self._begin(session, question)

    def turn_begins(self, session: CollabSession, step: int, speaker: Model) -> None:
        """The session's step `step` is begun by `speaker`: what can count no more is ended."""
        asked, waiting = session.question, session.next_question
        if not session.is_checking or asked is None:
            return
        if asked.engine.role is not speaker:
            session.stop_checking()
        elif asked.step < step - 1:
            session.stop_checking()
            if waiting is not None:
                self._begin(session, waiting)

    def _begin(self, session: CollabSession, question: Question) -> None:
        session.question = question
        session.checking = asyncio.create_task(self._run(session, question))
        session.checking.add_done_callback(partial(self._go_on, session))

    def _go_on(self, session: CollabSession, ended: asyncio.Task[None]) -> None:
        waiting = session.next_question
        if session.checking is ended and waiting is not None:
            session.next_question = None
            self._begin(session, waiting)

    async def _run(self, session: CollabSession, question: Question) -> None:
        step, engine = question.step, question.engine
        started_s = self._clock.monotonic_s()
        judgement, end = None, "failed"
        try:
            request = check_request(question.body, question.reply, engine, session.session_id, self._settings.collab)
            judgement = await self._ask(engine, request, session.routing)
            end = "judged" if judgement is not None else "unreadable"
        except asyncio.CancelledError:
            end = "cancelled"
            raise
        except (EngineLost, TimeoutError) as error:
            logger.info("session %s step %d was not judged: %s", session.session_id, step, error or "it took too long")
        except Exception:
            # Whatever is wrong here, the verdict is missing, which the controller knows how to take.
            logger.exception("session %s step %d cannot be judged", session.session_id, step)
        finally:
            self._metrics.check(engine.role, end, self._clock.monotonic_s() - started_s)
        if judgement is None:
            return
        was_late = session.trajectory.late_verdicts
        session.trajectory.judged(step, judgement)
        self._metrics.judged(engine.role, judgement.p_true, session.trajectory.late_verdicts > was_late)
        question.on_judged()

    async def _ask(self, engine: Engine, request: Mapping[str, Any], routing: Mapping[str, str]) -> Judgement | None:
        headers = {"Content-Type": "application/json", **routing}
        timeout_s = self._settings.check_timeout_s
        raw = orjson.dumps(request)
        async with engine.open("POST", "/v1/chat/completions", raw, headers, timeout_s=timeout_s) as answer:
            raw = await answer.read()
            if answer.status != 200:
                logger.info("the %s model's engine refuses a check: %d %.300s", engine.role, answer.status, raw)
                return None
        return read_answer(orjson.loads(raw), self._settings.collab)
