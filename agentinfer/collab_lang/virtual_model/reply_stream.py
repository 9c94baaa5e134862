"""One streamed reply as the client sees it, whichever engines it comes from. Pure: chunks in, chunks out.

Text goes out as it comes. Tool calls are held until the reply is whole: a part of a call is of no use to an agent, and
a reply of which only text went out can be taken up by the other model where the first one's engine fell silent.

    sent to the client      kept here until the reply is whole
    role, text, reasoning | tool calls, and all after them; the finish reason; the usage
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agentinfer.messages import Reply
from agentinfer.messages.stream import CallParts
from agentinfer.sessions import TurnUsage


class ReplyStream:
    """`name` is the model's as the client knows it; `wants_usage`, whether it asked for a last chunk with the usage."""

    def __init__(self, name: str, wants_usage: bool) -> None:
        self._name = name
        self._wants_usage = wants_usage
        self._identity: dict[str, Any] = {}
        self._is_resumed = False
        self._held: list[dict[str, Any]] = []
        self._usage: dict[str, Any] | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._pieces_before = 0
        self.num_sent_pieces = 0
        """Pieces of text that went out, each a token or more."""

    @property
    def sent_text(self) -> str:
        """What went out of the first choice, without its reasoning."""
        return "".join(self._text)

    def take(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A chunk from the engine; those to be sent now."""
        if not self._identity:
            self._identity = {name: chunk[name] for name in ("id", "created") if name in chunk}
        named = {**chunk, **self._identity, "model": self._name}
        if isinstance(named.get("usage"), dict):
            self._usage = named["usage"]
        choices = named.get("choices") or []
        ends = any(choice.get("finish_reason") for choice in choices)
        calls = any(_delta(choice).get("tool_calls") for choice in choices)
        if self._held or ends or calls or not choices:
            self._held.append(named)
            return []
        texts, reasoning = _said([named], "content"), _said([named], "reasoning_content")
        if texts or reasoning:
            self.num_sent_pieces += 1
            self._text.extend(texts)
            self._reasoning.extend(reasoning)
        elif self._is_resumed:
            return []  # the other engine's opening of a reply that is under way
        return [named]

    def resume(self) -> None:
        """The engine is lost, the other one takes the reply up: what was held is forgotten, what was sent is said."""
        self._held.clear()
        self._usage = None
        self._pieces_before = self.num_sent_pieces
        self._is_resumed = True

    def rest(self, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The chunks that were held; the last ones have `about` in the field `agentinfer`."""
        rest = []
        for chunk in self._held:
            usage = chunk.get("usage")
            if not chunk.get("choices") and usage and not self._wants_usage:
                continue
            if isinstance(usage, dict):
                chunk["usage"] = self._counted(usage)
            if usage or any(choice.get("finish_reason") for choice in chunk.get("choices") or ()):
                chunk["agentinfer"] = dict(about)
            rest.append(chunk)
        return rest

    def reply(self) -> Reply:
        """What was said so far, the first choice of it."""
        calls, reason = CallParts(), None
        for choice in _first_choices(self._held):
            for piece in _delta(choice).get("tool_calls") or ():
                function = piece.get("function") or {}
                calls.add(piece.get("index"), piece.get("id"), function.get("name"), function.get("arguments"))
            reason = choice.get("finish_reason") or reason
        text = "".join((*self._text, *_said(self._held, "content")))
        reasoning = "".join((*self._reasoning, *_said(self._held, "reasoning_content")))
        return Reply(text, reasoning, calls.joined(), reason, self._identity.get("id"))

    def usage(self) -> TurnUsage | None:
        """The engine's counts, where they came."""
        return None if self._usage is None else usage_of({"usage": self._counted(self._usage)})

    def _counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        """A reply that was taken up: what the first engine said is part of it, not of its prompt."""
        before = self._pieces_before
        if not before or not isinstance(usage.get("prompt_tokens"), int):
            return usage
        moved = min(before, usage["prompt_tokens"])
        completion = int(usage.get("completion_tokens") or 0) + moved
        return {**usage, "prompt_tokens": usage["prompt_tokens"] - moved, "completion_tokens": completion}


def usage_of(body: Mapping[str, Any]) -> TurnUsage | None:
    """The tokens that a chat completion reports; SGLang leaves the cached ones out where there are none."""
    usage = body.get("usage")
    if not isinstance(usage, Mapping) or not isinstance(usage.get("prompt_tokens"), int):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    completion = usage.get("completion_tokens")
    return TurnUsage(
        usage["prompt_tokens"],
        cached if isinstance(cached, int) else 0,
        completion if isinstance(completion, int) else 0,
    )


def _first_choices(chunks: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (choice for chunk in chunks for choice in chunk.get("choices") or () if not choice.get("index"))


def _delta(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    return choice.get("delta") or {}


def _said(chunks: Iterable[Mapping[str, Any]], field: str) -> list[str]:
    return [text for choice in _first_choices(chunks) if (text := _delta(choice).get(field))]
