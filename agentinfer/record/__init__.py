"""The session record: a JSON line a turn, written by a server and read back by replay (``agentinfer.sessions`` v1).

Every start of a server writes a header, ``{"format", "version", "model", "started_unix_s"}``. A turn's line gives only
the messages that its session's previous line did not have, so a file grows with what was said, not with its square.
"""

from __future__ import annotations

from agentinfer.record.form import FORMAT, Recording, TurnRecord
from agentinfer.record.reader import read_record
from agentinfer.record.writer import RecordWriter

__all__ = ["FORMAT", "RecordWriter", "Recording", "TurnRecord", "read_record"]
