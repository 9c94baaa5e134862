"""What can be asked of a store: the look-up tables over a log's contexts, and retrieval from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy.typing as npt

from agentinfer.clock import Clock
from agentinfer.spec_sam.store.arguments import as_tokens
from agentinfer.spec_sam.store.catalogue import Catalogue
from agentinfer.spec_sam.store.errors import UnknownNamespaceError
from agentinfer.spec_sam.store.folder import CORRUPT_SUFFIX
from agentinfer.spec_sam.store.log import Log
from agentinfer.spec_sam.store.options import StoreOptions
from agentinfer.spec_sam.store.payloads import StoredContext, Tokens
from agentinfer.spec_sam.store.retrieval import Retrieved, Retriever
from agentinfer.spec_sam.store.stats import StoreStats, of_namespaces
from agentinfer.spec_sam.store.usefulness import Ledger


class StoreView:
    """The asking half of `ContextStore`. Any thread may call any method here; none but the first `retrieve` of a
    namespace waits for a writer."""

    def __init__(self, log: Log, options: StoreOptions, retriever: Callable[[], Retriever], clock: Clock) -> None:
        self.options = options
        self._log = log
        self._retriever = retriever
        self._clock = clock
        # Whoever changes the log holds _writing; _state guards the look-up tables, for moments only. A thread that
        # needs both takes _writing first.
        self._writing = threading.RLock()
        self._state = threading.RLock()
        self._catalogue = Catalogue()
        self._ledger = Ledger(options.half_life_s)
        self._indexes: dict[str, Retriever] = {}

    @property
    def path(self) -> Path:
        return self._log.path

    @property
    def read_only(self) -> bool:
        return self._log.read_only

    def retrieve(
        self, namespace: str, query_tokens: npt.ArrayLike, k: int, *, exclude_session: str | None = None
    ) -> list[Retrieved]:
        """The `k` contexts of the namespace that were said in the situation most like the query's end, best first.

        `query_tokens` is the coming turn's prompt, or its last few hundred tokens. An unknown namespace has none.
        """
        query = as_tokens(query_tokens, "query_tokens")
        index = self._indexes.get(namespace) or self._build_index(namespace)
        with self._state:
            excluded: Collection[int] = ()
            if exclude_session is not None:
                excluded = self._catalogue.ids_of_session(namespace, exclude_session)
        found = []
        for context_id, similarity in index.search(query, k, excluded):
            with self._state:
                entry = self._catalogue.get(context_id)
                if entry is None:  # evicted since the search
                    continue
                context, segment = entry
                tokens = segment.tokens(context)
            found.append(Retrieved(context_id, context.session, similarity, tokens, context.response_start))
        return found

    def contexts(self, namespace: str | None = None, session: str | None = None) -> list[StoredContext]:
        """All, or those of a namespace, or of one session of it; oldest first."""
        with self._state:
            found = [
                context
                for context in self._catalogue
                if namespace in (None, context.namespace) and session in (None, context.session)
            ]
        return sorted(found, key=lambda context: context.id)

    def has(self, context_id: int) -> bool:
        with self._state:
            return context_id in self._catalogue

    def check_namespace(self, namespace: str) -> None:
        """Raises UnknownNamespaceError naming those that there are."""
        if namespace not in self.namespaces:
            known = ", ".join(self.namespaces) or "none"
            raise UnknownNamespaceError(f"{self.path}: no namespace {namespace!r} is stored; there are: {known}")

    def tokens(self, context_id: int) -> Tokens:
        """What the turn added, response last: a read-only view, valid for as long as it is held. Raises KeyError."""
        with self._state:
            return self._catalogue.tokens(context_id)

    def text(self, context_id: int) -> Tokens:
        """The whole text up to and with the response, or as much of its end as is stored. Raises KeyError."""
        with self._state:
            if context_id not in self._catalogue:
                raise KeyError(context_id)
            return self._catalogue.text(context_id)

    def usefulness(self, context_id: int) -> float:
        """Accepted draft tokens, decayed to now."""
        with self._state:
            return self._ledger.value(context_id, self._clock.unix_s())

    @property
    def tokenizer(self) -> str | None:
        return self._log.tokenizer

    @property
    def namespaces(self) -> list[str]:
        with self._state:
            return self._catalogue.namespaces

    @property
    def size_bytes(self) -> int:
        """All segments on disk, headers and credit included."""
        return self._log.size_bytes

    def stats(self) -> StoreStats:
        with self._state:
            now_s = self._clock.unix_s()
            contexts = [(context, self._ledger.value(context.id, now_s)) for context in self._catalogue]
        return StoreStats(
            tokenizer=self.tokenizer,
            segments=len(self._log.segments),
            size_bytes=self.size_bytes,
            index_bytes=self._index_bytes(),
            set_aside=len(list(self.path.glob(f"*{CORRUPT_SUFFIX}"))),
            namespaces=of_namespaces(contexts),
        )

    def check_integrity(self) -> None:
        """Raises AssertionError naming the broken rule."""
        with self._writing, self._state:
            self._catalogue.check_integrity()
            in_segments = {i: s for s in self._log.segments.values() for i in s.contexts}
            assert in_segments.keys() == {c.id for c in self._catalogue}, "contexts of segments and catalogue"
            for context_id, segment in in_segments.items():
                entry = self._catalogue.get(context_id)
                assert entry is not None, f"context {context_id}"
                assert entry.segment is segment, f"context {context_id} is said to be in {entry.segment.path}"
            assert self._ledger.context_ids <= in_segments.keys(), "credit of contexts that are gone"
            for namespace, index in self._indexes.items():
                index.check_integrity([c.id for c in self.contexts(namespace)])
            if not self.read_only:
                on_disk = sum(path.stat().st_size for path in self.path.glob("*.segment"))
                on_disk -= self._log.leftover_bytes
                assert on_disk == self.size_bytes, f"{on_disk} bytes on disk, {self.size_bytes} counted"
                assert self.size_bytes <= self.options.max_bytes, f"{self.size_bytes} bytes held"

    def _take_over(self) -> bool:
        """Makes the look-up tables those of the log's segments."""
        segments = self._log.segments.values()
        places = {i: segment for segment in segments for i in segment.contexts}
        with self._state:
            gone = [c for c in self._catalogue if c.id not in places]
            added = [i for i in places if i not in self._catalogue]
            self._forget(gone)
            for context_id, segment in places.items():
                entry = self._catalogue.get(context_id)
                if entry is None or entry.segment is not segment:
                    self._catalogue.put(segment.contexts[context_id], segment)
            credits = [credit for segment in segments for credit in segment.take_credits()]
            for credit in credits:
                for context_id in credit.accepted.keys() & places.keys():
                    self._ledger.restore(context_id, credit.accepted[context_id], credit.at_unix_s, credit.sequence)
        by_namespace: dict[str, list[int]] = {}
        for context_id in added:
            by_namespace.setdefault(places[context_id].header.namespace, []).append(context_id)
        for namespace, ids in by_namespace.items():
            self._index_contexts(namespace, ids)
        return bool(gone or added or credits)

    def _build_index(self, namespace: str) -> Retriever:
        with self._writing:
            if namespace not in self._indexes:
                index = self._retriever()
                ids = [context.id for context in self.contexts(namespace)]
                index.add(ids, [self._catalogue.key(i, index.key_tokens) for i in ids])
                if not ids:
                    return index  # remembered once there is something: anybody may ask for any name
                self._indexes[namespace] = index
            return self._indexes[namespace]

    def _index_contexts(self, namespace: str, context_ids: Collection[int]) -> None:
        index = self._indexes.get(namespace)
        if index is not None:
            ids = sorted(context_ids)
            index.add(ids, [self._catalogue.key(i, index.key_tokens) for i in ids])

    def _forget(self, contexts: Iterable[StoredContext]) -> None:
        by_namespace: dict[str, list[int]] = {}
        for context in contexts:
            by_namespace.setdefault(context.namespace, []).append(context.id)
        for namespace, ids in by_namespace.items():
            if namespace in self._indexes:
                self._indexes[namespace].remove(ids)
            self._catalogue.remove(ids)
            self._ledger.forget(ids)
            if namespace not in self._catalogue.namespaces:
                self._indexes.pop(namespace, None)

    def _index_bytes(self) -> int:
        return sum(index.memory_bytes() for index in list(self._indexes.values()))
