"""Warm hand-over: the model that does not speak computes what was said, while the agent's tool runs.

Where the engines share no device it also computes a turn's prompt while the other one answers it, so that behind the
turn only the reply is left. What was computed stays in that engine's cache whenever reading ahead is ended: by a turn
that goes there, which computes the rest itself, or by the next thing to be read, which begins with the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import orjson

from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.hand_over import EscalationRate, chance_of_switch, is_worth
from agentinfer.collab_lang.virtual_model.collab_session import CollabSession
from agentinfer.collab_lang.virtual_model.engine import Engine, EngineLost
from agentinfer.collab_lang.virtual_model.outgoing import one_token_request, prefill_request
from agentinfer.metrics import CollabMetrics

logger = logging.getLogger(__name__)

_PREFILL_PATH = "/agentinfer/prefill"
_NO_SUCH_ROUTE = (404, 405)
# Of a chat whose tokens nobody has counted yet: what English text and code come to.
_BYTES_A_TOKEN = 4


class Warming:
    """Decides whether a session's other model reads on now, and has it do so."""

    def __init__(self, engines: Mapping[Model, Engine], escalations: EscalationRate, metrics: CollabMetrics) -> None:
        self._engines = engines
        self._escalations = escalations
        self._metrics = metrics

    def consider(
        self,
        session: CollabSession,
        speaker: Model,
        body: Mapping[str, Any],
        reply: Mapping[str, Any],
        num_tokens: int,
        is_decided: bool = False,
    ) -> None:
        """After `reply` by `speaker`, with which the session has `num_tokens`; `is_decided`: the other one is next."""
        if session.read[speaker.other].ahead_tokens is None:
            self._consider(session, speaker, body, reply, num_tokens, session.size_bytes, is_decided)

    def consider_prompt(self, session: CollabSession, speaker: Model, body: Mapping[str, Any], size_bytes: int) -> None:
        """While `speaker` answers `body`, a chat of `size_bytes`."""
        if self._engines[speaker.other].prefills_ahead:  # only there is a request that is ended early not lost
            self._consider(session, speaker, body, None, size_bytes // _BYTES_A_TOKEN, size_bytes, False)

    def _consider(
        self,
        session: CollabSession,
        speaker: Model,
        body: Mapping[str, Any],
        reply: Mapping[str, Any] | None,
        num_tokens: int,
        size_bytes: int,
        is_decided: bool,
    ) -> None:
        engine = self._engines[speaker.other]
        read = session.read[engine.role]
        if session.is_warming and (session.warming_model, session.warming_bytes) == (engine.role, size_bytes):
            return
        if not engine.is_up or not size_bytes:
            return
        unseen = num_tokens * (1.0 - min(1.0, read.size_bytes / size_bytes))
        chance = 1.0 if is_decided else chance_of_switch(session.trajectory.state, self._escalations.per_step)
        if is_worth(chance, engine.busy.share, round(unseen)):
            session.stop_warming()
            request = prefill_request(body, reply, engine, session.session_id)
            session.warming = asyncio.create_task(self._run(session, engine, request, size_bytes, reply is not None))
            session.warming_model, session.warming_bytes = engine.role, size_bytes

    async def _run(
        self, session: CollabSession, engine: Engine, request: Mapping[str, Any], size_bytes: int, is_behind_turn: bool
    ) -> None:
        end, computed = "failed", 0
        try:
            counts = await self._prefilled(session, engine, request, is_behind_turn)
            if counts is not None:
                end, computed = "done", counts["computed_tokens"]
                read = session.read[engine.role]
                read.size_bytes = size_bytes
                if size_bytes == session.size_bytes and not session.is_stepping:
                    read.ahead_tokens = counts["prompt_tokens"]
        except asyncio.CancelledError:
            end = "cancelled"
            raise
        except EngineLost as error:
            logger.info(
                "session %s: nothing computed ahead on the %s model: %s", session.session_id, engine.role, error
            )
        except Exception:
            # Whatever is wrong here, the turn computes its prompt itself.
            logger.exception("session %s: nothing can be computed ahead", session.session_id)
        finally:
            self._metrics.warmed(engine.role, end, computed)

    async def _prefilled(
        self, session: CollabSession, engine: Engine, request: Mapping[str, Any], is_behind_turn: bool
    ) -> dict[str, int] | None:
        """`prompt_tokens` and `computed_tokens`; None where the prompt was not computed to its end."""
        headers = {"Content-Type": "application/json", **session.routing}
        if engine.prefills_ahead:
            async with engine.open("POST", _PREFILL_PATH, orjson.dumps(request), headers) as answer:
                raw = await answer.read()
                if answer.status == 200:
                    told = orjson.loads(raw)
                    return told if told.get("completed") else None
                if answer.status not in _NO_SUCH_ROUTE:
                    logger.info("the %s model's engine computes nothing ahead: %.300s", engine.role, raw)
                    return None
            engine.prefills_ahead = False
        if not is_behind_turn:
            return None
        chat = one_token_request(request, engine, session.session_id)
        async with engine.open("POST", "/v1/chat/completions", orjson.dumps(chat), headers) as answer:
            raw = await answer.read()
            if answer.status != 200:
                logger.info("the %s model's engine computes nothing ahead: %.300s", engine.role, raw)
                return None
        usage = orjson.loads(raw).get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        prompt = int(usage.get("prompt_tokens") or 0)
        return {"prompt_tokens": prompt, "computed_tokens": max(0, prompt - cached)}
