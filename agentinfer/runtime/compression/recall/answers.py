"""What an engine's answer says, as far as the server's own tool is concerned, and several answers' usage as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_TOKENS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_DETAILS: Final = ("prompt_tokens_details", "completion_tokens_details")


@dataclass(slots=True)
class Told:
    """What the client has been told in its turn by the answers before this one. `usage` is their sum."""

    text: str = ""
    answer_id: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class HiddenCall:
    """A call of the server's tool, at `place` among all calls of its answer."""

    place: int
    id: str | None = None
    arguments: str = ""

    def as_openai(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": name, "arguments": self.arguments}}


@dataclass(slots=True)
class Answer:
    """What one answer has said so far. `num_calls` counts the client's calls."""

    text: str = ""
    reasoning: str = ""
    hidden: list[HiddenCall] = field(default_factory=list)
    num_calls: int = 0
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    error: bytes | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the model ended it, so that its calls are whole."""
        return self.finish_reason in ("tool_calls", "stop")

    @property
    def asks_only_us(self) -> bool:
        """Whether nothing in it is for the client to do."""
        return self.is_whole and bool(self.hidden) and not self.num_calls

    @property
    def asks_both(self) -> bool:
        """Whether it calls tools of the client's too."""
        return self.is_whole and bool(self.hidden) and bool(self.num_calls)

    @property
    def told_reason(self) -> str | None:
        """Why it ended, as the client is told: one that sees no call is not told of calls."""
        return (
            "stop" if self.finish_reason == "tool_calls" and self.hidden and not self.num_calls else self.finish_reason
        )


def summed(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two answers' usage as one: prompts, what of them was cached, and completions added up."""
    total = dict(second)
    for name in _TOKENS:
        total[name] = (first.get(name) or 0) + (second.get(name) or 0)
    for name in _DETAILS:
        mine, other = first.get(name), second.get(name)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            total[name] = {key: _added(mine.get(key), other.get(key)) for key in sorted({*mine, *other}, key=str)}
        elif mine:
            total[name] = mine
    if "reasoning_tokens" in second:
        total["reasoning_tokens"] = _added(first.get("reasoning_tokens"), second["reasoning_tokens"])
    return total


def _added(first: Any, second: Any) -> Any:
    if isinstance(first, int) and isinstance(second, int):
        return first + second
    return second if first is None else first
