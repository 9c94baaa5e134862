"""The library door in the shape that agent graphs hook: over a state with "messages", as LangGraph and LangChain have.

The state keeps the whole history; only what the model reads is composed, under the key ``llm_input_messages`` that
LangGraph's ``pre_model_hook`` takes. Messages may be OpenAI objects or LangChain's own, which are read by their fields,
so nothing of LangChain is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from agentinfer.compress.middleware import MemoryCompressor

_ROLES: Final = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "function"}

State = Mapping[str, Any]


class GraphMemory:
    """`session_of` names the session of a (state, config); by default ``config["configurable"]["thread_id"]``."""

    def __init__(self, memory: MemoryCompressor, session_of: Callable[[State, Any], str] | None = None) -> None:
        self._memory = memory
        self._session_of = session_of or _thread_id

    async def before_model(self, state: State, config: Any = None) -> dict[str, Any]:
        """What the model is to read. A message that no composition stands for is the state's own object."""
        theirs = list(state["messages"])
        ours = [as_openai(message) for message in theirs]
        composed = await self._memory.before_model(self._session_of(state, config), ours)
        own = {id(converted): message for converted, message in zip(ours, theirs, strict=True)}
        return {"llm_input_messages": [own.get(id(message), message) for message in composed]}

    async def after_model(self, state: State, config: Any = None) -> None:
        """The state's last message is the model's reply. Returns nothing, since nothing of the state changes."""
        messages = [as_openai(message) for message in state["messages"]]
        if messages and messages[-1].get("role") == "assistant":
            self._memory.after_model(self._session_of(state, config), messages[:-1], messages[-1])


def as_openai(message: Any) -> Mapping[str, Any]:
    """A message as an OpenAI object. Raises TypeError for what is neither an object of that kind nor LangChain's."""
    if isinstance(message, Mapping):
        return message
    kind = getattr(message, "type", None)
    if kind not in _ROLES or not hasattr(message, "content"):
        raise TypeError(f"message: got {type(message).__name__}, expected an OpenAI message or one of LangChain's")
    found: dict[str, Any] = {"role": _ROLES[kind], "content": message.content}
    calls: Sequence[Mapping[str, Any]] = getattr(message, "tool_calls", None) or ()
    if calls:
        found["tool_calls"] = [_call(call) for call in calls]
    if getattr(message, "tool_call_id", None):
        found["tool_call_id"] = message.tool_call_id
    return found


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call.get("args") or {}, ensure_ascii=False)
    return {"id": call.get("id"), "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _thread_id(state: State, config: Any) -> str:
    configurable = config.get("configurable") if isinstance(config, Mapping) else None
    name = configurable.get("thread_id") if isinstance(configurable, Mapping) else None
    if name is None:
        raise ValueError('config: expected {"configurable": {"thread_id": ...}}, or pass session_of to GraphMemory')
    return str(name)
