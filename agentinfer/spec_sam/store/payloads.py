"""What records say: a context with its tokens, or the credit of some contexts. Bytes and back."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

_CONTEXT = struct.Struct("<dQIIIIII")
_CREDIT = struct.Struct("<dQ")
_CREDIT_ENTRY = np.dtype([("context", "<u8"), ("accepted", "<f8")])


class PayloadError(Exception):
    """A record whose checksum holds but whose content makes no sense: written by something else."""


@dataclass(frozen=True, slots=True)
class StoredContext:
    """A turn as stored: what it added to its session's text, response last.

    Its whole text is the first `shared` tokens of `parent`'s whole text (0: no parent) followed by its own
    `num_tokens`; the own ones from `response_start` on are the response. `size_bytes` is what it takes on disk.
    """

    id: int
    namespace: str
    session: str
    turn: int
    parent: int
    shared: int
    response_start: int
    num_tokens: int
    added_unix_s: float
    size_bytes: int

    @property
    def text_tokens(self) -> int:
        """Tokens of the whole text."""
        return self.shared + self.num_tokens


@dataclass(frozen=True, slots=True)
class ContextHead:
    """A context record without its tokens; `tokens_offset` is in bytes from the payload's start."""

    added_unix_s: float
    parent: int
    turn: int
    shared: int
    response_start: int
    num_tokens: int
    session: str
    tokens_offset: int


def encode_context(
    session: str, turn: int, tokens: Tokens, response_start: int, parent: int, shared: int, added_unix_s: float
) -> bytes:
    name = session.encode()
    numbers = (turn, shared, response_start, len(tokens), len(name), 0)
    head = _CONTEXT.pack(added_unix_s, parent, *numbers) + name + bytes(-len(name) % 4)
    return head + tokens.astype("<i4", copy=False).tobytes()


def context_payload_bytes(session: str, num_tokens: int) -> int:
    name_bytes = len(session.encode())
    return _CONTEXT.size + name_bytes + -name_bytes % 4 + 4 * num_tokens


def decode_context(payload: bytes) -> ContextHead:
    """Raises PayloadError."""
    try:
        added, parent, turn, shared, response_start, num_tokens, name_bytes, _ = _CONTEXT.unpack_from(payload)
        session = payload[_CONTEXT.size : _CONTEXT.size + name_bytes].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise PayloadError(f"a context record that does not read: {error}") from error
    offset = _CONTEXT.size + name_bytes + -name_bytes % 4
    if offset + 4 * num_tokens != len(payload) or response_start > num_tokens:
        raise PayloadError(
            f"a context of {num_tokens} tokens, response at {response_start}, in {len(payload)} payload bytes"
        )
    return ContextHead(added, parent, turn, shared, response_start, num_tokens, session, offset)


def encode_credit(accepted: Mapping[int, float], at_unix_s: float) -> bytes:
    entries = np.array(list(accepted.items()), dtype=_CREDIT_ENTRY)
    return _CREDIT.pack(at_unix_s, len(entries)) + entries.tobytes()


def decode_credit(payload: bytes) -> tuple[dict[int, float], float]:
    """Accepted tokens by context as of the second output. Raises PayloadError."""
    if len(payload) < _CREDIT.size:
        raise PayloadError(f"a credit record of {len(payload)} bytes")
    at_unix_s, count = _CREDIT.unpack_from(payload)
    if len(payload) != _CREDIT.size + count * _CREDIT_ENTRY.itemsize:
        raise PayloadError(f"a credit record of {count} entries in {len(payload)} bytes")
    entries = np.frombuffer(payload, _CREDIT_ENTRY, offset=_CREDIT.size)
    return dict(zip(entries["context"].tolist(), entries["accepted"].tolist(), strict=True)), at_unix_s
