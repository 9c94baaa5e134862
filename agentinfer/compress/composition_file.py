"""One composition as a file's content: sealed JSON, from which everything but the client's later words can be had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from agentinfer.compress.composition import Composition
from agentinfer.compress.memory import Observation
from agentinfer.compress.note import Note
from agentinfer.messages import DIGEST_BYTES
from agentinfer.sealed_file import SealError, seal

MAGIC: Final = "agentinfer-composition"
VERSION: Final = 1
SUFFIX: Final = ".composition"


def encode(session_id: str, composition: Composition) -> bytes:
    """The file's content."""
    body = {
        "session": session_id,
        "covers": composition.covers,
        "digest": composition.digest.hex(),
        "messages": composition.messages,
        "notes": [note.to_json() for note in composition.notes],
        "taken": [[each.index, each.tool, each.arguments_text, each.text] for each in composition.taken.values()],
    }
    return seal(MAGIC, VERSION, orjson.dumps(body))


def decode(body: bytes) -> tuple[str, Composition]:
    """The session and the composition in an unsealed body. Raises SealError naming what is not as it should be."""
    try:
        data = orjson.loads(body)
        session_id, covers, digest = data["session"], data["covers"], bytes.fromhex(data["digest"])
        messages, taken = data["messages"], [Observation(*each) for each in data["taken"]]
        notes = tuple(Note.from_json(each) for each in data["notes"])
    except (ValueError, KeyError, TypeError) as error:
        raise SealError(f"its content cannot be taken: {type(error).__name__}: {error}") from None
    _require(isinstance(session_id, str), "session", session_id)
    _require(type(covers) is int and covers > 0, "covers", covers)
    _require(len(digest) == DIGEST_BYTES, "digest", data["digest"])
    _require(isinstance(messages, list) and all(isinstance(each, dict) for each in messages), "messages", messages)
    _require(all(_is_sound(each, covers) for each in taken), "taken", data["taken"])
    by_index: Mapping[int, Observation] = {each.index: each for each in taken}
    return session_id, Composition(covers, digest, tuple(messages), notes, by_index)


def _is_sound(taken: Observation, covers: int) -> bool:
    texts = (taken.tool, taken.arguments_text, taken.text)
    return type(taken.index) is int and 0 <= taken.index < covers and all(isinstance(text, str) for text in texts)


def _require(holds: bool, name: str, seen: Any) -> None:
    if not holds:
        raise SealError(f"its content cannot be taken: {name} is {str(seen)[:80]!r}")
