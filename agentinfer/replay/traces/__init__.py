"""Reading recorded sessions: one door, `read_trace`, that finds out by content which format a file has."""

from __future__ import annotations

from agentinfer.replay.traces.detect import FORMATS, Trace, read_trace

__all__ = ["FORMATS", "Trace", "read_trace"]
