"""Warm hand-over: the model that does not speak computes what was said, while the agent's tool runs.

Ended when the session's next turn comes, wherever that goes: what is computed by then stays in that engine's cache, and
a turn that goes there computes the rest itself rather than both computing it twice.
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
        if session.warming is not None and not session.warming.done():
            return
        engine = self._engines[speaker.other]
        read = session.read[engine.role]
        if not engine.is_up or read.ahead_tokens is not None or not session.size_bytes:
            return
        unseen = num_tokens * (1.0 - min(1.0, read.size_bytes / session.size_bytes))
        chance = 1.0 if is_decided else chance_of_switch(session.trajectory.state, self._escalations.per_step)
        if is_worth(chance, engine.busy.share, round(unseen)):
            request = prefill_request(body, reply, engine, session.session_id)
            session.warming = asyncio.create_task(self._run(session, engine, request, session.size_bytes))

    async def _run(self, session: CollabSession, engine: Engine, request: Mapping[str, Any], size_bytes: int) -> None:
        end, computed = "failed", 0
        try:
            counts = await self._prefilled(session, engine, request)
            if counts is not None:
                end, computed = "done", counts["computed_tokens"]
                read = session.read[engine.role]
                read.size_bytes, read.ahead_tokens = size_bytes, counts["prompt_tokens"]
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
        self, session: CollabSession, engine: Engine, request: Mapping[str, Any]
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
