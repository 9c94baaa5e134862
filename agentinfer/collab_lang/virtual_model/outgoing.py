"""What the engines are sent: a turn, its continuation on the other engine, a step's check, a prompt ahead of time.

Checks and, where an engine computes no prompts ahead, what stands in for that go under a session of their own, a child
of the one they are about: to the engine they would else look like the session's next turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentinfer.collab_lang.check_request import check_body
from agentinfer.collab_lang.progress import PENDING_RESULT
from agentinfer.collab_lang.settings import CollabSettings
from agentinfer.collab_lang.virtual_model.engine import Engine

# Besides messages and tools, what decides a chat's prompt and which cached KV it can use.
_PROMPT_FIELDS: Final = (
    "reasoning_effort",
    "chat_template_kwargs",
    "lora_path",
    "cache_salt",
    "extra_key",
    "documents",
)
_BOUND_BY_GRAMMAR: Final = ("regex", "ebnf", "structural_tag")
# After the turns of any agent, where the engine orders its queue.
_LAST_PRIORITY: Final = -(1 << 30)
_MAX_ID_CHARS: Final = 200


def turn_body(body: Mapping[str, Any], engine: Engine, session_id: str, parent_id: str | None) -> dict[str, Any]:
    """The client's request as `engine` gets it. A stream's usage is always asked for; whoever sends it on drops it."""
    sent = {name: value for name, value in body.items() if name != "agentinfer"}
    sent["model"] = engine.address.model
    if engine.is_ours:
        own = {name: value for name, value in (body.get("agentinfer") or {}).items() if name != "collab"}
        parent = {} if parent_id in (None, session_id) else {"parent": parent_id}
        sent["agentinfer"] = {**parent, **own, "session": session_id}
    else:
        sent["session_id"] = session_id
    options = body.get("stream_options") or {}
    if body.get("stream") and "messages" in body and isinstance(options, Mapping):
        sent["stream_options"] = {**options, "include_usage": True}
    return sent


def can_be_continued(body: Mapping[str, Any]) -> bool:
    """Whether another model can take up a reply of which text has gone out: of one reply, and free in its form.

    A grammar would begin anew in the middle of the text.
    """
    form = body.get("response_format")
    is_free = form is None or (isinstance(form, Mapping) and form.get("type") == "text")
    is_free = is_free and not any(body.get(name) for name in _BOUND_BY_GRAMMAR)
    return is_free and body.get("n") in (None, 1)


def continued(body: Mapping[str, Any], sent_text: str, num_sent_pieces: int) -> dict[str, Any]:
    """The request that makes a model go on where `sent_text` ends. A piece is taken for a token of the limit."""
    if not sent_text:
        return dict(body)
    messages = list(body["messages"])
    last = messages[-1]
    if body.get("continue_final_message") and last.get("role") == "assistant" and isinstance(last.get("content"), str):
        messages[-1] = {**last, "content": last["content"] + sent_text}
    else:
        messages.append({"role": "assistant", "content": sent_text})
    limits = {
        name: max(1, body[name] - num_sent_pieces)
        for name in ("max_tokens", "max_completion_tokens")
        if isinstance(body.get(name), int)
    }
    return {**body, **limits, "messages": messages, "continue_final_message": True}


def check_request(
    body: Mapping[str, Any], reply: Mapping[str, Any], engine: Engine, session_id: str, settings: CollabSettings
) -> dict[str, Any]:
    """The check of `reply`, which answered the chat `body` and was spoken by the engine."""
    has_tools = body.get("tool_choice") != "none"
    check = check_body(body["messages"], reply, settings, body.get("tools") if has_tools else None)
    carried = _carried(body)
    thinking = {**(carried.pop("chat_template_kwargs", None) or {}), **check["chat_template_kwargs"]}
    carried.pop("reasoning_effort", None)
    return {**carried, **check, "chat_template_kwargs": thinking, **_aside(engine, session_id, "check")}


def prefill_request(
    body: Mapping[str, Any], reply: Mapping[str, Any] | None, engine: Engine, session_id: str
) -> dict[str, Any]:
    """All that was said, `reply` included where there is one, to be computed ahead (`POST /agentinfer/prefill`)."""
    tools = {name: body[name] for name in ("tools", "tool_choice") if body.get(name) is not None}
    messages = [*body["messages"], *([] if reply is None else [dict(reply)])]
    sent = {**_carried(body), **tools, "messages": messages, "model": engine.address.model}
    return {**sent, "agentinfer": {"session": session_id}}


def one_token_request(prefill: Mapping[str, Any], engine: Engine, session_id: str) -> dict[str, Any]:
    """The same as a chat completion of one token, for engines that compute nothing ahead.

    What comes next is stood for by a few words, since SGLang makes a last message of the assistant the user's.
    """
    sent = {name: value for name, value in prefill.items() if name != "agentinfer"}
    if sent.get("tool_choice") != "none":
        sent.pop("tool_choice", None)
    calls = prefill["messages"][-1].get("tool_calls") or []
    pending = [{"role": "tool", "tool_call_id": call.get("id", ""), "content": PENDING_RESULT} for call in calls]
    sent["messages"] = [*prefill["messages"], *(pending or [{"role": "user", "content": PENDING_RESULT}])]
    return {**sent, "max_tokens": 1, "temperature": 0, **_aside(engine, session_id, "prefill")}


def _carried(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in _PROMPT_FIELDS if body.get(name) is not None}


def _aside(engine: Engine, session_id: str, role: str) -> dict[str, Any]:
    """Marks a request as nobody's turn, and as one that may wait."""
    marks: dict[str, Any] = {"model": engine.address.model, "stream": False}
    if engine.is_ours:
        child = f"{session_id[:_MAX_ID_CHARS]}/{role}"
        marks["agentinfer"] = {"session": child, "parent": session_id, "role": role, "last": True}
        marks["nvext"] = {"agent_hints": {"priority": _LAST_PRIORITY}}
    return marks
