"""Why a session's turn missed its prefix: what changed since the turn before, where, and what to do about it.

Works on what the client sent and what the engine counted, so it names the message and the characters, which the
engine's cache, seeing token ids only, cannot.
"""

from __future__ import annotations

from agentinfer.prefix_doctor.causes import Cause
from agentinfer.prefix_doctor.diagnosis import Diagnosis, diagnose

__all__ = ["Cause", "Diagnosis", "diagnose"]
