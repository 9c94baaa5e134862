"""Replaying recorded agent sessions against a live server, over HTTP only, and comparing such runs."""

from __future__ import annotations

from agentinfer.replay.run import ReplayRun, RunOptions, replay
from agentinfer.replay.session import Session, Turn
from agentinfer.replay.traces import Trace, read_trace

__all__ = ["ReplayRun", "RunOptions", "Session", "Trace", "Turn", "read_trace", "replay"]
