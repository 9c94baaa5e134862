"""What a retriever is to the store, and what the store gives back.

A context is found by the tokens just before its response (its key), with the tokens just before the coming response as
the query: what an agent said in a similar situation is what it may say now. On recorded sessions this finds more of the
coming response than similarity of whole contexts (`benchmarks/store.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from agentinfer.spec_sam.store.payloads import Tokens


class Hit(NamedTuple):
    context_id: int
    similarity: float


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A stored context similar to a query. `similarity` is in (0, 1]; `tokens` (response last) are a read-only view
    that stays valid for as long as it is held, evicted or not."""

    context_id: int
    session: str
    similarity: float
    tokens: Tokens
    response_start: int


class Retriever(Protocol):
    """The index of one namespace. One thread at a time calls `add` and `remove`; `search` may run meanwhile in any
    number of others, and sees the contexts as before or as after."""

    key_tokens: int

    def add(self, context_ids: Sequence[int], keys: Sequence[Tokens]) -> None:
        """Keys are at most `key_tokens` long."""

    def remove(self, context_ids: Collection[int]) -> None: ...

    def search(self, query: Tokens, k: int, exclude: Collection[int]) -> list[Hit]:
        """The `k` most similar, best first, later context first among equals; only the query's end is looked at."""

    def memory_bytes(self) -> int: ...

    def check_integrity(self, context_ids: Collection[int]) -> None:
        """Raises AssertionError unless it holds exactly these contexts."""
