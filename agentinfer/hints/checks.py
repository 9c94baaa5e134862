"""Checks of single fields: each takes a field's path and value, and returns the value or raises HintError."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agentinfer.errors import HintError
from agentinfer.hints.model import Forced

MAX_SESSION_ID_CHARS: Final = 256
MAX_NAME_CHARS: Final = 128
MAX_EXPECTED_TOOL_S: Final = 7 * 24 * 3600.0
MAX_FORCED_TOKENS: Final = 1 << 20


def session_id(path: str, value: object) -> str:
    return text(path, value, MAX_SESSION_ID_CHARS)


def name(path: str, value: object) -> str:
    return text(path, value, MAX_NAME_CHARS)


def text(path: str, value: object, max_chars: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= max_chars or not value.isprintable():
        raise HintError(path, value, f"a string of 1 to {max_chars} printable characters")
    return value


def integer(path: str, value: object) -> int:
    if type(value) is not int or not -(1 << 31) <= value < 1 << 31:
        raise HintError(path, value, "a 32-bit integer")
    return value


def count(path: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise HintError(path, value, "an integer >= 0")
    return value


def seconds(path: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise HintError(path, value, "seconds as a number")
    if not 0 <= value <= MAX_EXPECTED_TOOL_S:  # false for NaN and infinities too
        raise HintError(path, value, f"finite seconds from 0 to {MAX_EXPECTED_TOOL_S:.0f}")
    return float(value)


def flag(path: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise HintError(path, value, "true or false")
    return value


def forced(path: str, value: object) -> Forced:
    if not isinstance(value, Mapping) or len(value) != 1 or not set(value) <= {"text", "token_ids"}:
        raise HintError(path, value, 'an object with either "text" or "token_ids"')
    if "text" in value:
        if not isinstance(value["text"], str):
            raise HintError(f"{path}.text", value["text"], "a string")
        return Forced(text=value["text"])
    token_ids = value["token_ids"]
    if not isinstance(token_ids, list) or not 0 < len(token_ids) <= MAX_FORCED_TOKENS:
        raise HintError(f"{path}.token_ids", token_ids, f"a list of 1 to {MAX_FORCED_TOKENS} token ids")
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in token_ids):
        bad = next(token for token in token_ids if not (type(token) is int and 0 <= token < 1 << 31))
        raise HintError(f"{path}.token_ids", bad, "token ids as integers >= 0")
    return Forced(token_ids=tuple(token_ids))
