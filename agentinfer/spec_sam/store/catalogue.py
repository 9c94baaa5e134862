"""Which contexts there are: by id, by namespace and session, and how a turn's whole text is put together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from agentinfer.spec_sam.store.payloads import StoredContext, Tokens
from agentinfer.spec_sam.store.segment import Segment

# A turn is compared with so many earlier ones: a session's branches (sub-agents under one id, retries), or the first
# turns of other sessions, whose system prompt it may share.
_CANDIDATES = 4
# Below this, pointing to another session's first turn is not worth the dependence on it.
_MIN_SHARED_TOKENS = 32


class Entry(NamedTuple):
    context: StoredContext
    segment: Segment


class Overlap(NamedTuple):
    """The stored context whose whole text has the longest common beginning with a new one; parent 0: none."""

    parent: int
    shared: int


class Catalogue:
    """Not thread-safe: the store guards it."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        # namespace -> session -> ids of its contexts, oldest first
        self._sessions: dict[str, dict[str, dict[int, None]]] = {}
        # namespace -> ids of contexts that have no parent, oldest first
        self._roots: dict[str, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, context_id: int) -> bool:
        return context_id in self._entries

    def __iter__(self) -> Iterator[StoredContext]:
        return (entry.context for entry in self._entries.values())

    def get(self, context_id: int) -> Entry | None:
        return self._entries.get(context_id)

    def put(self, context: StoredContext, segment: Segment) -> None:
        """Adds a context, or tells that it lies in another segment now."""
        self._entries[context.id] = Entry(context, segment)
        sessions = self._sessions.setdefault(context.namespace, {})
        sessions.setdefault(context.session, {})[context.id] = None
        if not context.parent:
            self._roots.setdefault(context.namespace, {})[context.id] = None

    def remove(self, context_ids: Iterable[int]) -> None:
        for context_id in context_ids:
            context = self._entries.pop(context_id).context
            sessions = self._sessions[context.namespace]
            del sessions[context.session][context_id]
            if not context.parent:
                del self._roots[context.namespace][context_id]
            if not sessions[context.session]:
                del sessions[context.session]
            if not sessions:
                del self._sessions[context.namespace]
                self._roots.pop(context.namespace, None)

    @property
    def namespaces(self) -> list[str]:
        return sorted(self._sessions)

    def sessions(self, namespace: str) -> list[str]:
        return list(self._sessions.get(namespace, {}))

    def of_session(self, namespace: str, session: str) -> list[StoredContext]:
        """Oldest first."""
        ids = self._sessions.get(namespace, {}).get(session, {})
        return [self._entries[i].context for i in sorted(ids)]

    def ids_of_session(self, namespace: str, session: str) -> frozenset[int]:
        return frozenset(self._sessions.get(namespace, {}).get(session, ()))

    def tokens(self, context_id: int) -> Tokens:
        context, segment = self._entries[context_id]
        return segment.tokens(context)

    def text(self, context_id: int, end: int | None = None, max_tokens: int | None = None) -> Tokens:
        """The whole text up to `end` (default: all), or as much of its end as is stored and `max_tokens` allows."""
        pieces: list[Tokens] = []
        wanted = end
        missing = max_tokens if max_tokens is not None else 1 << 62
        current = context_id
        while missing > 0 and (entry := self._entries.get(current)) is not None:
            context, segment = entry
            stop = context.text_tokens if wanted is None else wanted
            own = segment.tokens(context)[: max(0, stop - context.shared)][-missing:]
            pieces.append(own)
            missing -= len(own)
            wanted = min(stop, context.shared)
            current = context.parent
            if not current or wanted == 0:
                break
        return np.concatenate(pieces[::-1]) if pieces else np.empty(0, np.int32)

    def key(self, context_id: int, num_tokens: int) -> Tokens:
        """The tokens just before the response: what the context is found by. Without any, the response's first."""
        context = self._entries[context_id].context
        before = self.text(context_id, context.shared + context.response_start, num_tokens)
        return before if len(before) else self.tokens(context_id)[:num_tokens]

    def overlap(self, namespace: str, session: str, text: Tokens) -> Overlap:
        """Where a new text of this session goes on from what is stored."""
        best = self._longest(reversed(self.of_session(namespace, session)[-_CANDIDATES:]), text)
        if best.shared < _MIN_SHARED_TOKENS:
            roots = islice(reversed(self._roots.get(namespace, {})), _CANDIDATES)
            other = self._longest((self._entries[i].context for i in roots), text)
            best = other if other.shared >= _MIN_SHARED_TOKENS else best
        return best if best.shared else Overlap(0, 0)

    def _longest(self, candidates: Iterable[StoredContext], text: Tokens) -> Overlap:
        best = Overlap(0, 0)
        for context in candidates:
            stored = self.text(context.id)
            if len(stored) == context.text_tokens:  # else an ancestor was evicted
                shared = common_prefix(stored, text)
                best = Overlap(context.id, shared) if shared > best.shared else best
        return best

    def check_integrity(self) -> None:
        """Raises AssertionError naming the context whose place in the lists is wrong."""
        listed = {i: (n, s) for n, by in self._sessions.items() for s, ids in by.items() for i in ids}
        assert listed.keys() == self._entries.keys(), f"listed in sessions and known differ: {listed.keys()}"
        roots = {i for ids in self._roots.values() for i in ids}
        for context_id, (context, segment) in self._entries.items():
            assert listed[context_id] == (context.namespace, context.session), f"context {context_id}: {context}"
            assert (context_id in roots) == (context.parent == 0), f"context {context_id}: root or not"
            assert context.namespace == segment.header.namespace, f"context {context_id} is in {segment.path}"
            assert len(segment.tokens(context)) == context.num_tokens, f"context {context_id}: tokens"
            assert context.parent < context_id, f"context {context_id}: parent {context.parent}"
        assert all(by and all(by.values()) for by in self._sessions.values()), "an empty session or namespace is left"


def common_prefix(left: Tokens, right: Tokens) -> int:
    """How many first tokens are equal."""
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if len(differing) else size


def total_bytes(contexts: Sequence[StoredContext]) -> int:
    return sum(context.size_bytes for context in contexts)
