"""OpenAI message JSON lines: a session a line, `{"id", "task", "run", "source", "messages": [...]}`.

Messages may carry `t`, seconds since the session began; a reply's `t` is when it was complete, a tool message's when
the tool had answered. `tools` (schemas) and everything but `messages` may be absent.
"""

from __future__ import annotations

from typing import Any

from agentinfer.errors import TraceError
from agentinfer.replay.session import Session, SessionBuilder
from agentinfer.replay.traces.files import TraceFile


def read(file: TraceFile) -> list[Session]:
    return [_session(where, line, number) for number, (where, line) in enumerate(file.objects())]


def _session(where: str, line: dict[str, Any], number: int) -> Session:
    messages = line.get("messages")
    if not isinstance(messages, list):
        if "requests" in line:
            raise TraceError(f"{where}: requests: this trace holds token counts and times but no text to replay")
        raise TraceError(f"{where}: messages: expected a list of chat messages, got {type(messages).__name__}")
    builder = SessionBuilder(where)
    for place, message in enumerate(messages):
        builder.add(message, message.get("t") if isinstance(message, dict) else None, f"messages[{place}]")
    tools = line.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise TraceError(f"{where}: tools: expected a list of tool schemas, got {type(tools).__name__}")
    identity = str(line.get("id", f"line{number + 1}"))
    return Session(
        id=identity,
        task=str(line.get("task", identity)),
        run=str(line.get("run", "")),
        source=str(line.get("source", "openai-messages")),
        turns=builder.turns(),
        tool_schemas=tuple(tools),
    )
