"""Whether the engines live: asked at intervals, and at once when a request has found one lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from agentinfer.collab_lang.virtual_model.engine import Engine, EngineLost
from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings

logger = logging.getLogger(__name__)


class HealthWatch:
    """Asks one engine. It is down when it refuses a connection, or is silent for several questions in a row."""

    def __init__(
        self, engine: Engine, settings: FrontSettings, greet: Callable[[Engine], Awaitable[None]] | None = None
    ) -> None:
        """`greet` runs beside the watch whenever an engine answers that was not known, or was down."""
        self._engine = engine
        self._settings = settings
        self._misses = 0
        self._asked_s = 0.0
        self._is_known = False
        self._is_told_down = False
        self._greet = greet
        self._greeting: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        engine = self._engine
        while True:
            engine.doubted.clear()
            await self.ask()
            with suppress(TimeoutError):
                await asyncio.wait_for(engine.doubted.wait(), self._settings.health_period_s)
                # Whoever found it lost was faster than its end: give the port time to refuse.
                await asyncio.sleep(min(0.1, self._settings.health_period_s))

    async def ask(self) -> None:
        """One question, and what follows from its answer."""
        engine = self._engine
        was_up = engine.is_up
        self._asked_s = asyncio.get_running_loop().time()
        # Of one that was up, the list of its models costs no forward pass; one that comes back must generate first.
        path = "/v1/models" if was_up else "/health"
        try:
            async with engine.open("GET", path, timeout_s=self._settings.health_timeout_s) as answer:
                status = answer.status
                await answer.read()
        except EngineLost as error:
            self._down(str(error))
        except TimeoutError:
            self._misses += 1
            if self._misses >= self._settings.misses_to_down:
                self._down(f"no answer within {self._settings.health_timeout_s:g} s, {self._misses} times in a row")
        else:
            self._misses = 0
            if status >= 500:
                self._down(f"{path} answers {status}")
                return
            if self._is_told_down:
                self._is_told_down = False
                logger.info("the %s model's engine answers again", engine.role)
            engine.found_up()
            if not self._is_known or not was_up:
                await self._get_to_know()

    async def _get_to_know(self) -> None:
        """It may be another program than before: does it take our hints?"""
        engine = self._engine
        with suppress(EngineLost, TimeoutError):
            timeout_s = self._settings.health_timeout_s
            async with engine.open("GET", "/agentinfer/status", timeout_s=timeout_s) as answer:
                engine.is_ours = answer.status == 200
                engine.prefills_ahead = engine.is_ours
                self._is_known = True
                await answer.read()
        if self._greet is not None and (self._greeting is None or self._greeting.done()):
            self._greeting = asyncio.ensure_future(self._greet(engine))

    def close(self) -> None:
        """Ends a greeting that still runs."""
        if self._greeting is not None:
            self._greeting.cancel()

    def _down(self, reason: str) -> None:
        engine = self._engine
        if not self._is_told_down:
            logger.warning("the %s model's engine at %s is down: %s", engine.role, engine.address.base_url, reason)
        self._is_told_down = True
        engine.found_down(reason, self._asked_s)
