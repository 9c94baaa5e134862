"""What the HTTP process and the scheduler tell each other; travels as SGLang's requests do, to every rank alike."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.io_struct import BaseReq


class SessionNews(BaseReq, kw_only=True):  # type: ignore[misc, call-arg]
    """From the HTTP process: its time, and what happened to sessions since the last message.

    `called`: (session, tools that its client runs now, since when). `ended`: sessions of which no further turn comes.
    `prefill_tokens_per_s`: the engine's speed as its first rank measured it, None where that did not change. Times are
    in seconds on the HTTP process's clock.
    """

    now_s: float
    called: list[tuple[str, list[str], float]] = []  # noqa: RUF012 - msgspec copies it
    ended: list[str] = []  # noqa: RUF012 - msgspec copies it
    prefill_tokens_per_s: float | None = None


class SchedulingReport(BaseReq, kw_only=True):  # type: ignore[misc, call-arg]
    """The answer of the scheduler's first rank: the policy's figures."""

    figures: dict[str, Any]
