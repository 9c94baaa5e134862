"""The exported form of a store, JSON lines of token ids (``agentinfer.corpus`` v1): a header, then a context a line.

Ids are only names within the file. What an importer makes of it holds the same sessions, turns, tokens, texts, ages and
usefulness.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from agentinfer.errors import TraceError
from agentinfer.replay.traces.files import TraceFile, load
from agentinfer.spec_sam.store import ContextStore, StoredContext
from agentinfer.spec_sam.store.payloads import Tokens

FORMAT: Final = "agentinfer.corpus"
VERSION: Final = 1
_INTEGERS = ("id", "turn", "parent", "shared", "response_start")


@dataclass(frozen=True, slots=True)
class Line:
    """`parent` is the id of an earlier line, or 0 where it is not stored (with `shared` above 0: no longer)."""

    namespace: str
    session: str
    id: int
    turn: int
    parent: int
    shared: int
    response_start: int
    added_unix_s: float
    usefulness: float
    tokens: Tokens


def export(store: ContextStore, contexts: Iterable[StoredContext]) -> Iterator[bytes]:
    """The file's lines, line ends included. Contexts have to come oldest first."""
    yield orjson.dumps({"format": FORMAT, "version": VERSION, "tokenizer": store.tokenizer}) + b"\n"
    told: set[int] = set()
    for context in contexts:
        line = {
            "namespace": context.namespace,
            "session": context.session,
            "id": context.id,
            "turn": context.turn,
            "parent": context.parent if context.parent in told else 0,
            "shared": context.shared,
            "response_start": context.response_start,
            "added_unix_s": context.added_unix_s,
            "usefulness": store.usefulness(context.id),
            "tokens": store.tokens(context.id).tolist(),
        }
        told.add(context.id)
        yield orjson.dumps(line) + b"\n"


def tokenizer_of(path: Path) -> str | None:
    """The tokenizer that an exported file names; None when the file is something else (recorded sessions, say).

    Raises TraceError when it cannot be read, or is of a later version.
    """
    file = load(path)
    _, first = next(file.lines())
    try:
        header = orjson.loads(first)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        return None
    if header.get("version") != VERSION or not isinstance(header.get("tokenizer"), str):
        raise TraceError(
            f"{path}:1: expected {FORMAT} version {VERSION} with the name of a tokenizer, got version "
            f"{header.get('version')!r}, tokenizer {header.get('tokenizer')!r}"
        )
    return str(header["tokenizer"])


def read(path: Path) -> Iterator[Line]:
    """The contexts of an exported file. Raises TraceError naming file, line and field."""
    file: TraceFile = load(path)
    seen: set[int] = set()
    for number, (where, value) in enumerate(file.objects()):
        if number:
            line = _line(where, value, seen)
            seen.add(line.id)
            yield line


def _line(where: str, value: dict[str, Any], seen: set[int]) -> Line:
    for name in (*_INTEGERS, "added_unix_s", "usefulness"):
        kinds: tuple[type, ...] = (int,) if name in _INTEGERS else (int, float)
        if type(value.get(name)) not in kinds or not value[name] >= 0:
            whole = "whole " if name in _INTEGERS else ""
            raise TraceError(f"{where}: {name}: expected a {whole}number from 0, got {value.get(name)!r}")
    for name in ("namespace", "session"):
        if not isinstance(value.get(name), str):
            raise TraceError(f"{where}: {name}: expected text, got {value.get(name)!r}")
    if value["parent"] and value["parent"] not in seen:
        raise TraceError(f"{where}: parent: expected the id of an earlier line or 0, got {value['parent']}")
    tokens = value.get("tokens")
    if not isinstance(tokens, list) or not all(type(t) is int and -(2**31) <= t < 2**31 for t in tokens):
        raise TraceError(f"{where}: tokens: expected a list of 32-bit token ids")
    if value["response_start"] > len(tokens):
        raise TraceError(f"{where}: response_start: {value['response_start']} is beyond the {len(tokens)} tokens")
    return Line(
        namespace=value["namespace"],
        session=value["session"],
        **{name: value[name] for name in _INTEGERS},
        added_unix_s=float(value["added_unix_s"]),
        usefulness=float(value["usefulness"]),
        tokens=np.array(tokens, np.int32),
    )
