"""What a recorded session is to the replayer: turns, each with its prompt, its recorded reply and the wait after it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from agentinfer.errors import TraceError

Message = dict[str, Any]

_ROLES = {"system", "developer", "user", "assistant", "tool"}
_KEPT_KEYS = ("role", "content", "name", "reasoning_content", "tool_call_id")


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: `prompt` goes to the server, `reply` is the assistant message that was recorded for it.

    `gap_s` is the recorded time between this reply and the next turn (a tool, or a person); None when the trace carries
    no times or no turn follows. `tools` names what the reply calls, in order.
    """

    index: int
    prompt: tuple[Message, ...]
    reply: Message
    gap_s: float | None = None
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """A recorded agent session. Several sessions may share a `task`; `run` tells its repetitions apart."""

    id: str
    task: str
    run: str
    source: str
    turns: tuple[Turn, ...]
    tool_schemas: tuple[dict[str, Any], ...] = ()
    parent: str | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """Everything said, the last reply included."""
        return (*self.turns[-1].prompt, self.turns[-1].reply) if self.turns else ()


@dataclass(slots=True)
class SessionBuilder:
    """Checks messages one after another and cuts them into turns; errors name `where` and the message's place."""

    where: str
    messages: list[Message] = field(default_factory=list)
    times_s: list[float | None] = field(default_factory=list)

    def add(self, raw: object, time_s: object = None, place: str | None = None) -> None:
        """Append one message. Raises TraceError naming the field when it is not an OpenAI chat message."""
        place = place or f"messages[{len(self.messages)}]"
        self.messages.append(clean_message(raw, self.where, place))
        if time_s is not None and (isinstance(time_s, bool) or not isinstance(time_s, int | float)):
            raise TraceError(f"{self.where}: {place}.t: expected seconds, got {_short(time_s)}")
        self.times_s.append(None if time_s is None else float(time_s))

    def turns(self) -> tuple[Turn, ...]:
        """A turn for every assistant message that something precedes."""
        places = [i for i, m in enumerate(self.messages) if m["role"] == "assistant" and i > 0]
        found = []
        for index, place in enumerate(places):
            following = places[index + 1] if index + 1 < len(places) else len(self.messages)
            found.append(
                Turn(
                    index=index,
                    prompt=tuple(self.messages[:place]),
                    reply=self.messages[place],
                    gap_s=self._gap_s(place, following) if index + 1 < len(places) else None,
                    tools=called_tools(self.messages[place]),
                )
            )
        return tuple(found)

    def _gap_s(self, reply_place: int, next_reply_place: int) -> float | None:
        """From the reply to the last message the next turn waited for: with two tools at once, the slower one."""
        said_s = self.times_s[reply_place]
        waited = [t for t in self.times_s[reply_place + 1 : next_reply_place] if t is not None]
        return max(0.0, max(waited) - said_s) if said_s is not None and waited else None


def clean_message(raw: object, where: str, place: str) -> Message:
    """The message with the keys a chat route takes, tool calls in full form. Raises TraceError naming the field."""
    if not isinstance(raw, Mapping):
        raise TraceError(f"{where}: {place}: expected a message object, got {_short(raw)}")
    role = raw.get("role")
    if role not in _ROLES:
        raise TraceError(f"{where}: {place}.role: expected one of {', '.join(sorted(_ROLES))}, got {_short(role)}")
    content = raw.get("content")
    if content is not None and not isinstance(content, str | list):
        raise TraceError(f"{where}: {place}.content: expected text, a list of parts or null, got {_short(content)}")
    message = {key: raw[key] for key in _KEPT_KEYS if raw.get(key) is not None}
    message["content"] = content
    calls = raw.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise TraceError(f"{where}: {place}.tool_calls: expected a list, got {_short(calls)}")
        message["tool_calls"] = [_clean_call(c, f"{where}: {place}.tool_calls[{i}]", i) for i, c in enumerate(calls)]
    return message


def called_tools(message: Message) -> tuple[str, ...]:
    return tuple(call["function"]["name"] for call in message.get("tool_calls", ()))


def text_of(message: Mapping[str, Any]) -> str:
    """The message's text; text parts are joined as SGLang joins them for a template, others count as nothing."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping) and p.get("type") == "text")
    return content or ""


def check_sessions(sessions: Sequence[Session], where: str) -> list[Session]:
    """Sessions that can be replayed, ids unique. Raises TraceError when none has a turn or an id comes twice."""
    seen: set[str] = set()
    for session in sessions:
        if session.id in seen:
            raise TraceError(f"{where}: session id {session.id!r} comes twice; ids must be unique in one trace")
        seen.add(session.id)
    usable = [s for s in sessions if s.turns]
    if not usable:
        raise TraceError(f"{where}: no session with an assistant reply in {len(sessions)} read; nothing to replay")
    return usable


def _clean_call(raw: object, where: str, position: int) -> dict[str, Any]:
    function = raw.get("function") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(function, Mapping):
        raise TraceError(f"{where}.function: expected an object with name and arguments, got {_short(raw)}")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise TraceError(f"{where}.function.name: expected a tool name, got {_short(name)}")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if arguments is not None and not isinstance(arguments, str):
        raise TraceError(f"{where}.function.arguments: expected JSON text or an object, got {_short(arguments)}")
    call_id = raw.get("id")
    return {
        "id": call_id if isinstance(call_id, str) and call_id else f"call_{position}",
        "type": "function",
        "function": {"name": name, "arguments": _object_text(arguments)},
    }


def _object_text(arguments: str | None) -> str:
    """SGLang answers 400 to arguments that are no JSON object, yet models do write such calls: keep them as a field."""
    if not arguments:
        return "{}"
    try:
        parsed = orjson.loads(arguments)  # the parser that SGLang reads them with
    except orjson.JSONDecodeError:
        parsed = None
    return arguments if isinstance(parsed, dict) else json.dumps({"unparsed": arguments}, ensure_ascii=False)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
