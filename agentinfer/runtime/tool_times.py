"""How long sessions stay away between turns: learned from the turns that pass, shown by `status`, kept in a file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentinfer.clock import Clock
from agentinfer.metrics import Metrics
from agentinfer.sessions import Outcome, SessionView, Turn
from agentinfer.tool_gaps import ToolGaps

if TYPE_CHECKING:
    from agentinfer.radix_ext.latency_file import LatencyFile


@dataclass(frozen=True, slots=True)
class _Away:
    tools: tuple[str, ...]
    since_s: float


class ToolTimes:
    """Lives on the HTTP server's event loop; not thread-safe.

    Tools' times are learned, those in which a session is away without a tool (a person thinks), and how often a session
    does not come back at all, which is known once the session table forgets it.
    """

    def __init__(self, clock: Clock, metrics: Metrics, file: LatencyFile | None) -> None:
        """`file`: where what was learned is kept; None to forget it at the end."""
        self._clock = clock
        self._metrics = metrics
        self._file = file
        self._gaps = ToolGaps() if file is None else file.load()
        self._away: dict[str, _Away] = {}  # by session; freed by its next turn or by `session_gone`

    @property
    def gaps(self) -> ToolGaps:
        """All that is known. Not to be written to."""
        return self._gaps

    def turn_begun(self, turn: Turn) -> None:
        """A session is back."""
        away = self._away.pop(turn.session_id, None)
        if turn.tool_gap_s is not None:
            tool = self._gaps.observe(turn.tool_names, turn.tool_gap_s, self._clock.unix_s())
            self._metrics.tool_gap(tool, turn.tool_gap_s)
        elif away is not None and not away.tools:
            self._gaps.observe((), self._clock.monotonic_s() - away.since_s, self._clock.unix_s())

    def turn_finished(self, view: SessionView | None, outcome: Outcome) -> None:
        """A turn of the session ended; `view` is None where the session was forgotten with it."""
        if view is None or view.num_running or view.state == "finished":
            return
        # A turn that failed is asked again at once: nobody thinks.
        if view.tool_names or outcome == "ok":
            self._away[view.session_id] = _Away(view.tool_names, self._clock.monotonic_s())

    def session_gone(self, session_id: str, is_forgotten: bool) -> None:
        """No further turn is expected: nobody came back for too long, or (not `is_forgotten`) the client said so."""
        away = self._away.pop(session_id, None)
        if away is not None and is_forgotten:
            self._gaps.observe_never(away.tools)

    def status(self) -> dict[str, Mapping[str, Any]]:
        """By tool, most gaps first: the summary of its gaps, the latest one and how long ago that ended."""
        now_s = self._clock.unix_s()
        found: dict[str, Mapping[str, Any]] = {}
        for name, summary in self._gaps.summaries().items():
            latest = self._gaps.latest(name)
            at_s = None if latest is None else latest.at_unix_s
            found[name] = {
                **summary.as_dict(),
                "latest_s": None if latest is None else round(latest.seconds, 3),
                "latest_age_s": None if at_s is None else round(max(0.0, now_s - at_s), 3),
            }
        return found

    async def save_if_due(self) -> None:
        """Saves now and then; the event loop does not wait for the disk."""
        if self._file is not None and self._file.is_due(self._gaps):
            await asyncio.to_thread(self._file.write, self._file.take(self._gaps))

    def close(self) -> None:
        """Saves what is new, at the server's end."""
        if self._file is not None:
            self._file.save(self._gaps)
