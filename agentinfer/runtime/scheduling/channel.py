"""The HTTP process's side: tells the scheduler what happens to sessions between their turns, and the time.

The scheduler reads no clock, since every rank must decide alike: the time is carried to it by requests, and between
them by ticks, as long as a turn is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Protocol

from agentinfer.clock import Clock
from agentinfer.config import SchedulingConfig
from agentinfer.metrics import SchedulingMetrics

TICK_S = 0.25

# Ticks go on for so long after the last turn, so that the figures shown are those of an engine at rest.
GRACE_S = 2.0


# A measured speed is passed on when it differs from the last one by this share: the policy needs no more.
_SPEED_STEP = 0.1


class SendNews(Protocol):
    """Sends a `messages.SessionNews` to the scheduler."""

    def __call__(
        self,
        now_s: float,
        called: list[tuple[str, list[str], float]],
        ended: list[str],
        prefill_tokens_per_s: float | None,
    ) -> None: ...


class SchedulerChannel:
    """Lives on the HTTP server's event loop; not thread-safe."""

    def __init__(
        self, clock: Clock, send: SendNews, metrics: SchedulingMetrics | None = None, is_speed_given: bool = False
    ) -> None:
        """`is_speed_given`: the operator says how fast the engine is, so that no measurement is passed on."""
        self._clock = clock
        self._send_news = send
        self._metrics = metrics
        self._is_speed_given = is_speed_given
        self._told_speed = 0.0
        self._new_speed: float | None = None
        self._open_turns = 0
        self._quiet_since_s = float("-inf")
        self._figures: dict[str, Any] | None = None
        self._heard_s = 0.0

    def turn_begun(self) -> None:
        """A turn is on its way to the scheduler."""
        self._open_turns += 1

    def turn_finished(self) -> None:
        """A turn that was begun has ended, however."""
        self._open_turns -= 1
        self._quiet_since_s = self._clock.monotonic_s()

    def tools_called(self, session: str, tools: Collection[str], since_s: float) -> None:
        """The session's client runs these tools since `since_s`."""
        self._send(self._clock.monotonic_s(), [(session, list(tools), since_s)], [])

    def session_gone(self, session: str) -> None:
        """No further turn of the session is expected."""
        self._send(self._clock.monotonic_s(), [], [session])

    async def keep_time(self) -> None:
        """Send ticks while they matter, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            now_s = self._clock.monotonic_s()
            if self._open_turns or now_s - self._quiet_since_s < GRACE_S:
                self._send(now_s, [], [])

    def heard(self, figures: dict[str, Any]) -> None:
        """The scheduler's answer to a message."""
        self._figures, self._heard_s = figures, self._clock.monotonic_s()
        if self._metrics is not None:
            self._metrics.update(figures)
        speed = figures.get("measured_prefill_tokens_per_s")
        if speed is not None and not self._is_speed_given:
            is_news = abs(speed - self._told_speed) > _SPEED_STEP * self._told_speed
            self._new_speed = speed if is_news else None

    def status(self) -> dict[str, Any] | None:
        """The scheduler's latest figures, with their age; None before the first."""
        if self._figures is None:
            return None
        return {**self._figures, "age_s": round(self._clock.monotonic_s() - self._heard_s, 3)}

    def _send(self, now_s: float, called: list[tuple[str, list[str], float]], ended: list[str]) -> None:
        speed, self._new_speed = self._new_speed, None
        self._told_speed = speed or self._told_speed
        self._send_news(now_s, called, ended, speed)


def connect(clock: Clock, config: SchedulingConfig) -> SchedulerChannel:
    """The channel to the scheduler of the server in this process, which has been set up but does not serve yet."""
    from sglang.srt.entrypoints.http_server import get_global_state
    from sglang.utils import TypeBasedDispatcher

    from agentinfer.runtime.scheduling.messages import SchedulingReport, SessionNews

    manager = get_global_state().tokenizer_manager

    def send(now_s: float, called: Any, ended: Any, prefill_tokens_per_s: float | None) -> None:
        manager._dispatch_to_scheduler(
            SessionNews(now_s=now_s, called=called, ended=ended, prefill_tokens_per_s=prefill_tokens_per_s)
        )

    is_speed_given = config.sched_prefill_tokens_per_s is not None
    channel = SchedulerChannel(clock, send, SchedulingMetrics(), is_speed_given)
    hear: Callable[[Any], None] = lambda report: channel.heard(report.figures)  # noqa: E731
    manager._result_dispatcher += TypeBasedDispatcher([(SchedulingReport, hear)])
    return channel
