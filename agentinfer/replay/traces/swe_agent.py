"""SWE-agent `.traj`: one session a file, `{"environment", "trajectory": [steps], "history": [messages], "info"}`.

`history` is what the model was told and said; `trajectory[i].execution_time` is how long step i's command ran. The file
holds no wall clock, so only the tools' seconds are known. Where a history processor shortened old observations, the
full ones are replayed: what was cut is a setting of the agent and not in the file.
"""

from __future__ import annotations

from typing import Any

from agentinfer.errors import TraceError
from agentinfer.replay.session import Session, SessionBuilder
from agentinfer.replay.traces.files import TraceFile


def matches(document: dict[str, Any]) -> bool:
    return isinstance(document.get("trajectory"), list) and isinstance(document.get("history"), list)


def read(file: TraceFile, document: dict[str, Any]) -> list[Session]:
    history = document["history"]
    agents = [entry.get("agent") for entry in history if isinstance(entry, dict)]
    main_agent = "main" if "main" in agents else next((a for a in agents if a is not None), None)
    durations = iter([_duration_s(file, step, i) for i, step in enumerate(document["trajectory"])])
    builder = SessionBuilder(str(file.path))
    clock_s: float | None = 0.0  # tool seconds only, see above
    for place, entry in enumerate(history):
        if isinstance(entry, dict) and entry.get("agent") not in (None, main_agent):
            continue
        builder.add(_as_chat(entry), clock_s, f"history[{place}]")
        if entry["role"] == "assistant" and not entry.get("is_demo"):
            duration_s = next(durations, None)
            clock_s = None if clock_s is None or duration_s is None else clock_s + duration_s
    name = file.path.name.split(".traj")[0]
    return [
        Session(id=name, task=name, run=file.path.parent.name, source="swe-agent", turns=builder.turns()),
    ]


def _as_chat(entry: Any) -> Any:
    """History names the call a result answers in a list; the chat API has one id. Anything else passes on unchanged."""
    if not isinstance(entry, dict):
        return entry
    message = dict(entry)
    ids = message.get("tool_call_ids")
    if message.get("role") == "tool" and isinstance(ids, list) and ids:
        message["tool_call_id"] = str(ids[0])
    return message


def _duration_s(file: TraceFile, step: object, number: int) -> float | None:
    duration = step.get("execution_time") if isinstance(step, dict) else None
    if duration is None:
        return None
    if isinstance(duration, bool) or not isinstance(duration, int | float) or duration < 0:
        raise TraceError(f"{file.path}: trajectory[{number}].execution_time: expected seconds, got {duration!r}")
    return float(duration)
