"""How much a store holds, and how useful it was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentinfer.spec_sam.store.payloads import StoredContext


@dataclass(frozen=True, slots=True)
class NamespaceStats:
    """Usefulness is in accepted draft tokens, decayed to now; bytes are those of the contexts on disk."""

    namespace: str
    sessions: int
    contexts: int
    tokens: int
    size_bytes: int
    usefulness: float


@dataclass(frozen=True, slots=True)
class StoreStats:
    """`size_bytes` is all segments, headers and credit included; `index_bytes` is of the namespaces searched so far;
    `set_aside` counts the damaged segments in the folder."""

    tokenizer: str | None
    segments: int
    size_bytes: int
    index_bytes: int
    set_aside: int
    namespaces: tuple[NamespaceStats, ...]


def of_namespaces(contexts: Iterable[tuple[StoredContext, float]]) -> tuple[NamespaceStats, ...]:
    """From each context and its usefulness; sorted by name."""
    held: dict[str, list[tuple[StoredContext, float]]] = {}
    for context, usefulness in contexts:
        held.setdefault(context.namespace, []).append((context, usefulness))
    return tuple(
        NamespaceStats(
            namespace=name,
            sessions=len({c.session for c, _ in own}),
            contexts=len(own),
            tokens=sum(c.num_tokens for c, _ in own),
            size_bytes=sum(c.size_bytes for c, _ in own),
            usefulness=sum(usefulness for _, usefulness in own),
        )
        for name, own in sorted(held.items())
    )
