"""An answer that comes as one JSON object, without its calls of one tool that is the server's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentinfer.compress.hidden import SEPARATOR
from agentinfer.runtime.compression.recall.answers import Answer, HiddenCall, Told, summed


def read_whole(tool: str, body: Mapping[str, Any]) -> Answer:
    """An answer that came as one JSON object, which is left as it is. Raises LookupError or TypeError for another."""
    choice = body["choices"][0]
    message = choice["message"]
    calls = message.get("tool_calls") or ()
    hidden = [
        HiddenCall(place, call.get("id"), call["function"].get("arguments") or "")
        for place, call in enumerate(calls)
        if call["function"].get("name") == tool
    ]
    return Answer(
        text=message.get("content") or "",
        reasoning=message.get("reasoning_content") or "",
        hidden=hidden,
        num_calls=len(calls) - len(hidden),
        finish_reason=choice.get("finish_reason"),
        usage=body.get("usage"),
    )


def joined_whole(tool: str, body: Mapping[str, Any], said: Answer, told: Told) -> dict[str, Any]:
    """The client's answer: without calls of `tool`, behind what it would have been told before."""
    choice = body["choices"][0]
    message = dict(choice["message"])
    text = message.get("content")
    if told.text:
        message["content"] = told.text + SEPARATOR + text if text else told.text
    if message.get("tool_calls"):
        calls = [call for call in message["tool_calls"] if call["function"].get("name") != tool]
        message["tool_calls"] = [_numbered(call, place) for place, call in enumerate(calls)] or None
    joined = {
        **body,
        "choices": [{**choice, "message": message, "finish_reason": said.told_reason}, *body["choices"][1:]],
    }
    if told.answer_id is not None:
        joined["id"] = told.answer_id
    if body.get("usage"):
        joined["usage"] = summed(told.usage, body["usage"])
    return joined


def _numbered(call: Mapping[str, Any], place: int) -> Mapping[str, Any]:
    return call if call.get("index") is None else {**call, "index": place}
