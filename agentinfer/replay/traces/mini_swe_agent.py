"""mini-swe-agent `.traj.json`: one session a file, `{"info", "messages", "trajectory_format", "instance_id"}`.

Times come from each message's `extra.timestamp` (v2) or `timestamp` (v1), in Unix seconds. The closing message with
role `exit` is the agent's own note, never sent to a model, and is left out.
"""

from __future__ import annotations

from typing import Any

from agentinfer.errors import TraceError
from agentinfer.replay.session import Session, SessionBuilder
from agentinfer.replay.traces.files import TraceFile


def matches(document: dict[str, Any]) -> bool:
    return isinstance(document.get("messages"), list) and (
        str(document.get("trajectory_format", "")).startswith("mini-swe-agent") or "info" in document
    )


def read(file: TraceFile, document: dict[str, Any]) -> list[Session]:
    builder = SessionBuilder(str(file.path))
    stamps = [_timestamp(message) for message in document["messages"]]
    began_s = next((stamp for stamp in stamps if stamp is not None), 0.0)
    for place, (message, stamp) in enumerate(zip(document["messages"], stamps, strict=True)):
        if isinstance(message, dict) and message.get("role") == "exit":
            continue
        if isinstance(message, dict) and "role" not in message and "type" in message:
            raise TraceError(
                f"{file.path}: messages[{place}]: an item of the Responses API ({message['type']!r}); "
                "expected chat messages, as the agent's litellm chat models write them"
            )
        builder.add(message, None if stamp is None else stamp - began_s, f"messages[{place}]")
    task = str(document.get("instance_id") or _name(file))
    info = document.get("info")
    version = info.get("mini_version") if isinstance(info, dict) else None
    return [
        Session(
            id=_name(file),
            task=task,
            run=file.path.parent.name,
            source=f"mini-swe-agent {version}" if version else "mini-swe-agent",
            turns=builder.turns(),
        )
    ]


def _timestamp(message: object) -> float | None:
    if not isinstance(message, dict):
        return None
    extra = message.get("extra")
    stamp = extra.get("timestamp") if isinstance(extra, dict) else None
    stamp = message.get("timestamp") if stamp is None else stamp
    return float(stamp) if isinstance(stamp, int | float) and not isinstance(stamp, bool) else None


def _name(file: TraceFile) -> str:
    name = file.path.name
    for ending in (".xz", ".gz", ".bz2", ".json", ".traj"):
        name = name.removesuffix(ending)
    return name
