"""Recognising agent sessions in a stream of requests, by hint or by content, and what is known of each."""

from __future__ import annotations

from agentinfer.sessions.table import SessionTable
from agentinfer.sessions.turns import (
    SESSION_STATES,
    Outcome,
    SessionState,
    SessionView,
    Turn,
    TurnSnapshot,
    TurnUsage,
)

__all__ = [
    "SESSION_STATES",
    "Outcome",
    "SessionState",
    "SessionTable",
    "SessionView",
    "Turn",
    "TurnSnapshot",
    "TurnUsage",
]
