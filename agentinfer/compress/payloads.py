"""What an agent wrote into a call's arguments: a file's text, a long script. Old ones can be cut to their beginning.

They are parts of actions, so they stay unless `Settings.take_payloads` is on: an agent that sees its own calls cut may
come to write such calls. The beginning stays, so that what was written where can still be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from agentinfer.compress.memory import Observation, observation_id
from agentinfer.messages import Message

_KEPT_CHARS: Final = 160


def payload_of(message: Message, index: int, min_chars: int) -> Observation | None:
    """What may be taken of the calls of the assistant message at `index`; None without a long text in them."""
    calls = [call for call in message.tool_calls if _cut(call.arguments_text, "", min_chars) is not None]
    if not calls:
        return None
    return Observation(index, calls[0].name, "", "\n".join(call.arguments_text for call in calls))


def without_payloads(message: Message, index: int, min_chars: int) -> dict[str, Any]:
    """The OpenAI message with each long text in its calls' arguments cut; all else as it came."""
    own = message.as_openai()
    own["tool_calls"] = [_without(call, index, min_chars) for call in own.get("tool_calls") or ()]
    return own


def chars_cut(message: Message, index: int, min_chars: int) -> int:
    """How many characters shorter `without_payloads` is."""
    cut = 0
    for call in message.tool_calls:
        shorter = _cut(call.arguments_text, observation_id(index), min_chars)
        cut += 0 if shorter is None else len(call.arguments_text) - len(shorter)
    return cut


def _without(call: Any, index: int, min_chars: int) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):  # some clients send the object itself
        arguments = orjson.dumps(arguments).decode()
    shorter = _cut(arguments, observation_id(index), min_chars) if isinstance(arguments, str) else None
    return call if shorter is None else {**call, "function": {**function, "arguments": shorter}}


def _cut(arguments_text: str, name: str, min_chars: int) -> str | None:
    """The arguments, still a JSON object, with texts of at least `min_chars` cut; None where there is none."""
    if len(arguments_text) < min_chars:
        return None
    try:
        arguments = orjson.loads(arguments_text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(arguments, dict):
        return None
    found = _cut_value(arguments, name, min_chars)
    return None if found is arguments else orjson.dumps(found).decode()


def _cut_value(value: Any, name: str, min_chars: int) -> Any:
    """The value itself where nothing in it is long."""
    if isinstance(value, str):
        if len(value) < min_chars:
            return value
        return f"{value[:_KEPT_CHARS]}\n[{name}: {len(value) - _KEPT_CHARS} more characters were taken out]"
    if isinstance(value, dict):
        cut = {key: _cut_value(each, name, min_chars) for key, each in value.items()}
        return value if all(cut[key] is value[key] for key in value) else cut
    if isinstance(value, list):
        items = [_cut_value(each, name, min_chars) for each in value]
        return value if _same(items, value) else items
    return value


def _same(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    return all(a is b for a, b in zip(ours, theirs, strict=True))
