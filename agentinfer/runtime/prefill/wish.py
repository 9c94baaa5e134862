"""What a client of `POST /agentinfer/prefill` wants to have computed: its body, or the field that it is refused for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from agentinfer.errors import HintError
from agentinfer.hints import parse_hints
from agentinfer.runtime.refusals import RefusedRequest

_SOURCES: Final = ("messages", "text", "input_ids")
# Ours, and no field of a chat request.
_EXACT: Final = "exact"


@dataclass(frozen=True, slots=True)
class Wish:
    """One request, whose prompt is one of `messages`, `text` and `input_ids`.

    `session_id` is the hint's, None without one. `is_exact` asks for the prompt of this very request, the beginning of
    the model's answer included, instead of what all prompts have that go on from its messages. `body` is the request as
    it came, but for our own fields.
    """

    source: str
    session_id: str | None
    is_exact: bool
    body: Mapping[str, Any] = field(repr=False)

    @property
    def prompt(self) -> Any:
        """The messages, the text or the tokens."""
        return self.body[self.source]


def read_wish(raw: bytes, headers: Mapping[str, str]) -> Wish:
    """`headers` has lower-case names. Raises RefusedRequest (400) naming the field that cannot be taken."""
    body = _object(raw)
    try:
        hints = parse_hints(body, headers)
    except HintError as error:
        raise RefusedRequest(400, str(error), error.field) from None
    sources = [name for name in _SOURCES if body.get(name) is not None]
    if len(sources) != 1:
        seen = " and ".join(sources) or "none of them"
        raise RefusedRequest(400, f"expected exactly one of {', '.join(_SOURCES)}, got {seen}", "messages")
    source = sources[0]
    expected = _CHECKS[source](body[source])
    if expected is not None:
        raise _refused(source, body[source], expected)
    is_exact = body.get(_EXACT, False)
    if not isinstance(is_exact, bool):
        raise _refused(_EXACT, is_exact, "true or false")
    own = (_EXACT, "agentinfer")
    return Wish(source, hints.session, is_exact, {name: value for name, value in body.items() if name not in own})


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RefusedRequest(400, f"the request body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise _refused("the request body", body, "a JSON object")
    return body


def _check_messages(messages: object) -> str | None:
    if isinstance(messages, list) and messages:
        bad = next((at for at, each in enumerate(messages) if not _is_message(each)), None)
        return None if bad is None else f"objects with a role, which number {bad} is not"
    return "a list of at least one message"


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _check_text(text: object) -> str | None:
    return None if isinstance(text, str) and text else "a text that is not empty, and one only"


def _check_ids(ids: object) -> str | None:
    if isinstance(ids, list) and ids and all(type(each) is int and each >= 0 for each in ids):
        return None
    return "a list of at least one token id, and of one prompt only"


_CHECKS: Final = {"messages": _check_messages, "text": _check_text, "input_ids": _check_ids}


def _refused(name: str, seen: object, expected: str) -> RefusedRequest:
    return RefusedRequest(400, str(HintError(name, seen, expected)), name)
