"""An answer's event stream on its way to the client: what it says passes, its calls of one tool do not.

That tool is the server's, so the client would not know it. What tells of the end (why, the usage) is held back until it
is known whether the client's turn ends there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from agentinfer.compress.hidden import SEPARATOR
from agentinfer.runtime.compression.recall.answers import Answer, HiddenCall, Told, summed

_DONE: Final = b"[DONE]"


class StreamedAnswer:
    """Reads an answer's event stream."""

    def __init__(self, tool: str, told: Told) -> None:
        self._tool = tool
        self._told = told
        self._is_further = told.answer_id is not None
        self._unread = b""
        self._places: dict[int, HiddenCall | int] = {}
        self._held: list[dict[str, Any]] = []
        self.said = Answer()

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes; what of them the client may have."""
        *events, self._unread = (self._unread + data).split(b"\n\n")
        return b"".join(self._passed(event) for event in events if event)

    def end(self) -> bytes:
        """The rest, for an answer that ends the client's turn."""
        for chunk in self._held:
            self._with_all_usage(chunk)
            for choice in chunk["choices"]:
                if choice.get("finish_reason"):
                    choice["finish_reason"] = self.said.told_reason
        closing = [*map(_event, self._held), b"data: " + _DONE + b"\n\n"]
        return b"".join([_with_break(self.said.error), *closing] if self.said.error else closing)

    def _passed(self, event: bytes) -> bytes:
        data = event.removeprefix(b"data:").strip() if event.startswith(b"data:") else None
        if data is None:
            return _with_break(event)
        if data == _DONE:
            return b""
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return _with_break(event)
        if not isinstance(chunk, dict):
            return _with_break(event)
        if "error" in chunk or not isinstance(chunk.get("choices"), list):
            self.said.error = event
            return b""
        if chunk.get("usage"):
            self.said.usage = chunk["usage"]
        if self._told.answer_id is None:
            self._told.answer_id = chunk.get("id")
        if not chunk["choices"] or self.said.finish_reason is not None:
            return self._hold(chunk)
        choice = chunk["choices"][0]
        if choice.get("finish_reason"):
            self.said.finish_reason = choice["finish_reason"]
            return self._hold(chunk)
        if not isinstance(choice.get("delta"), dict):
            return _with_break(event)
        is_ours = self._without_hidden(choice)
        is_changed = self._as_one_reply(choice) or is_ours
        if is_changed and not any(choice["delta"].get(name) for name in ("content", "reasoning_content", "tool_calls")):
            return b""
        if not (is_changed or self._is_further or chunk.get("usage")):
            return _with_break(event)
        self._with_all_usage(chunk)
        return _event(self._as_ours(chunk))

    def _hold(self, chunk: dict[str, Any]) -> bytes:
        self._held.append(self._as_ours(chunk))
        return b""

    def _as_ours(self, chunk: dict[str, Any]) -> dict[str, Any]:
        # One reply has one id, however often the engine was asked for it.
        return {**chunk, "id": self._told.answer_id}

    def _with_all_usage(self, chunk: dict[str, Any]) -> None:
        if chunk.get("usage"):
            chunk["usage"] = summed(self._told.usage, chunk["usage"])

    def _without_hidden(self, choice: dict[str, Any]) -> bool:
        """Takes the server's calls out of a delta, and numbers the client's anew; whether anything changed."""
        calls = choice["delta"].get("tool_calls")
        if not calls:
            return False
        kept = []
        for call in calls:
            index, function = call.get("index", 0), call.get("function") or {}
            if index not in self._places:
                self._places[index] = self._placed(index, function.get("name"))
            place = self._places[index]
            if isinstance(place, HiddenCall):
                place.id = place.id or call.get("id")
                place.arguments += function.get("arguments") or ""
            else:
                kept.append({**call, "index": place})
        is_changed = kept != calls
        choice["delta"]["tool_calls"] = kept or None
        return is_changed

    def _placed(self, index: int, name: object) -> HiddenCall | int:
        if name == self._tool:
            self.said.hidden.append(HiddenCall(index))
            return self.said.hidden[-1]
        self.said.num_calls += 1
        return self.said.num_calls - 1

    def _as_one_reply(self, choice: dict[str, Any]) -> bool:
        """Notes what a delta says; whether it had to be changed to go on from what the client was told before."""
        delta = choice["delta"]
        text, is_changed = delta.get("content"), False
        if text:
            if self._told.text and not self.said.text:
                delta["content"], is_changed = SEPARATOR + text, True
            self.said.text += text
        self.said.reasoning += delta.get("reasoning_content") or ""
        if self._is_further and delta.pop("role", None) is not None:
            is_changed = True
        return is_changed


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _with_break(event: bytes) -> bytes:
    return event + b"\n\n"
