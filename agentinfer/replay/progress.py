"""Progress on stderr: a bar that redraws itself on a terminal, a line every few seconds in a log."""

from __future__ import annotations

from typing import TextIO

from agentinfer.clock import Clock
from agentinfer.replay.driver import SessionResult, TurnResult

_BAR_CELLS = 24
_TERMINAL_EVERY_S = 0.1
_LOG_EVERY_S = 5.0


class Progress:
    """Counts turns and sessions as they end; writes at most every `every_s` and once at the end."""

    def __init__(self, stream: TextIO, clock: Clock, num_sessions: int, num_turns: int) -> None:
        self._stream = stream
        self._clock = clock
        self._num_sessions = num_sessions
        self._num_turns = num_turns
        self._is_terminal = stream.isatty()
        self._every_s = _TERMINAL_EVERY_S if self._is_terminal else _LOG_EVERY_S
        self._began_s = self._written_s = clock.monotonic_s()
        self._sessions = 0
        self._turns = 0
        self._errors = 0

    def turn_done(self, session: SessionResult, turn: TurnResult) -> None:
        self._turns += 1
        self._errors += turn.exchange.error is not None
        if self._clock.monotonic_s() - self._written_s >= self._every_s:
            self._write()

    def session_done(self, session: SessionResult) -> None:
        self._sessions += 1
        # A session that failed leaves turns that will never come: keep the bar's end reachable.
        self._num_turns -= len(session.session.turns) - len(session.turns)

    def finish(self) -> None:
        self._write()
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()

    def _write(self) -> None:
        self._written_s = self._clock.monotonic_s()
        text = (
            f"{self._sessions}/{self._num_sessions} sessions  {self._turns}/{self._num_turns} turns  "
            f"{self._written_s - self._began_s:.0f} s"
        )
        if self._errors:
            text += f"  {self._errors} errors"
        if self._is_terminal:
            filled = _BAR_CELLS * self._turns // max(1, self._num_turns)
            self._stream.write(f"\r\x1b[K[{'#' * filled}{'.' * (_BAR_CELLS - filled)}] {text}")
        else:
            self._stream.write(f"replay: {text}\n")
        self._stream.flush()
