"""Waiting for a live server's record: a turn is written down only after the last byte of its answer is out."""

from __future__ import annotations

import time
from pathlib import Path

from agentinfer.record import TurnRecord, read_record


def wait_for_turns(
    record_file: Path, session_id: str, num_turns: int, timeout_s: float = 10.0
) -> tuple[TurnRecord, ...]:
    """The session's recorded turns, once there are `num_turns`."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = read_record(record_file).sessions.get(session_id, ())
        if len(found) >= num_turns:
            return found
        assert time.monotonic() < deadline_s, f"{len(found)} of {num_turns} turns of {session_id} in {record_file}"
        time.sleep(0.2)
