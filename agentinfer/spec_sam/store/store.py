"""The store of finished contexts: what the agents said in which situation, kept across sessions and restarts."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from agentinfer.clock import Clock, SystemClock
from agentinfer.spec_sam.store import compaction
from agentinfer.spec_sam.store.catalogue import Catalogue
from agentinfer.spec_sam.store.errors import StoreError, UnknownNamespaceError
from agentinfer.spec_sam.store.files import Files
from agentinfer.spec_sam.store.folder import CORRUPT_SUFFIX
from agentinfer.spec_sam.store.log import Log
from agentinfer.spec_sam.store.options import StoreOptions
from agentinfer.spec_sam.store.payloads import (
    StoredContext,
    Tokens,
    encode_context,
    encode_credit,
)
from agentinfer.spec_sam.store.records import Kind
from agentinfer.spec_sam.store.retrieval import Retrieved, Retriever
from agentinfer.spec_sam.store.sparse import SparseRetriever
from agentinfer.spec_sam.store.stats import StoreStats, of_namespaces
from agentinfer.spec_sam.store.usefulness import Ledger

_MAX_NAME_BYTES = 1024
# Room is made down to this share of a bound, so that not every add has to.
_LOW_WATER = 0.9


class ContextStore:
    """One writer, any number of read-only stores on the same folder in other processes.

    Threads: any may call anything. `retrieve`, `credit` and the look-ups wait for no disk, except that a namespace's
    first `retrieve` builds its index (about 0.1 ms a context). `add`, `remove`, `evict`, `flush`, `refresh` and `close`
    read or write files: call them from a background thread, never between decode steps. They wait for each other only.
    """

    def __init__(
        self,
        path: Path | str,
        tokenizer: str | None,
        *,
        read_only: bool = False,
        options: StoreOptions | None = None,
        retriever: Callable[[], Retriever] = SparseRetriever,
        clock: Clock | None = None,
        files: Files | None = None,
    ) -> None:
        """Opens the store in folder `path`; a writer makes it where there is none, and repairs what a crash left.

        `tokenizer` is a fingerprint (`tokenizer_fingerprint`); None takes that of the store. `retriever` makes the
        index of a namespace. Raises NotAStoreError, StoreLockedError, WrongTokenizerError, SegmentVersionError or
        StoreError. A read-only store changes no file, not even a damaged one.
        """
        self.path = Path(path)
        self.options = options or StoreOptions()
        self.read_only = read_only
        self._retriever = retriever
        self._clock = clock or SystemClock()
        # Whoever changes the log holds _writing; _state guards the look-up tables, for moments only. A thread that
        # needs both takes _writing first.
        self._writing = threading.RLock()
        self._state = threading.RLock()
        self._catalogue = Catalogue()
        self._ledger = Ledger(self.options.half_life_s)
        self._indexes: dict[str, Retriever] = {}
        self._credit_saved_s = self._clock.monotonic_s()
        self._log = Log(self.path, tokenizer, read_only, self.options, self._clock, files or Files())
        try:
            self._take_over()
            if not read_only and self._log.segments:
                self._make_room(0)  # the bound may be smaller than it was
        except BaseException:
            self._log.release()
            raise

    # Filling

    def add(
        self, namespace: str, session: str, turn: int, prompt: npt.ArrayLike, response: npt.ArrayLike
    ) -> int | None:
        """Keeps a finished turn, and of its prompt only what its session (or another's first turn) did not have.

        Returns the context's id: that of the one already there when nothing is new, None for an empty turn. When there
        is no room, contexts of the least usefulness a byte go first. Raises StoreError; what was stored stays.
        """
        before, said = _tokens(prompt, "prompt"), _tokens(response, "response")
        text = np.concatenate([before, said])
        if not len(text):
            return None
        with self._writing:
            while True:
                overlap = self._catalogue.overlap(namespace, session, text)
                known = self._catalogue.get(overlap.parent)
                if known is not None and overlap.shared == len(text) == known.context.text_tokens:
                    return known.context.id
                shared = min(overlap.shared, len(before))
                parent = overlap.parent if shared else 0
                # What had to go to make room may have been the parent.
                if not self._reserve(namespace, _context_bytes(session, len(text) - shared)):
                    break
            start = len(before) - shared
            return self.add_new(namespace, session, turn, text[shared:], start, parent=parent, shared=shared)

    def add_new(
        self,
        namespace: str,
        session: str,
        turn: int,
        tokens: npt.ArrayLike,
        response_start: int,
        *,
        parent: int = 0,
        shared: int = 0,
        added_unix_s: float | None = None,
    ) -> int:
        """Keeps a turn whose new tokens the caller knows: they follow the first `shared` tokens of `parent`'s text.

        `tokens[response_start:]` is the response. `parent` 0 with `shared` above 0: what came before is not stored.
        `added_unix_s`: when it was said, if not now. Raises StoreError; what was stored stays.
        """
        new = _tokens(tokens, "tokens")
        _check_name("namespace", namespace)
        _check_name("session", session)
        numbers = (("turn", turn, 2**32 - 1), ("shared", shared, 2**31), ("response_start", response_start, len(new)))
        for name, value, high in numbers:
            if not 0 <= value <= high:
                raise StoreError(f"{name}: expected 0 to {high}, got {value}")
        with self._writing:
            self._reserve(namespace, _context_bytes(session, len(new)))
            above = self._catalogue.get(parent)
            if parent and (above is None or above.context.namespace != namespace):
                raise StoreError(f"parent: expected a context stored in {namespace!r}, or 0; got {parent}")
            if above is not None and not 0 < shared <= above.context.text_tokens:
                raise StoreError(f"shared: expected 1 to {above.context.text_tokens}, parent's tokens; got {shared}")
            added_s = self._clock.unix_s() if added_unix_s is None else added_unix_s
            payload = encode_context(session, turn, new, response_start, parent, shared, added_s)
            segment, sequence = self._log.append(namespace, Kind.CONTEXT, payload)
            with self._state:
                self._catalogue.put(segment.contexts[sequence], segment)
            self._index_contexts(namespace, [sequence])
            if self._clock.monotonic_s() - self._credit_saved_s >= self.options.credit_save_s:
                self._save_credit()
            return sequence

    def credit(self, context_id: int, accepted_tokens: float) -> None:
        """Tells that drafts from this context were accepted. Saved with the next records; nothing for an evicted one.

        In a read-only store it lasts as long as the object.
        """
        if not accepted_tokens >= 0:
            raise StoreError(f"accepted_tokens: expected a number from 0, got {accepted_tokens}")
        with self._state:
            if context_id in self._catalogue:
                self._ledger.credit(context_id, accepted_tokens, self._clock.unix_s())

    # Asking

    def retrieve(
        self, namespace: str, query_tokens: npt.ArrayLike, k: int, *, exclude_session: str | None = None
    ) -> list[Retrieved]:
        """The `k` contexts of the namespace that were said in the situation most like the query's end, best first.

        `query_tokens` is the coming turn's prompt, or its last few hundred tokens. An unknown namespace has none.
        """
        query = _tokens(query_tokens, "query_tokens")
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

    # Making room

    def evict(
        self, max_bytes: int | None = None, *, namespace: str | None = None, older_than_s: float | None = None
    ) -> list[StoredContext]:
        """Removes contexts and returns them: those added more than `older_than_s` ago, then the least useful ones a
        byte until the store (with `namespace`: that namespace's contexts) is within `max_bytes`.

        Only of `namespace` where given. Raises UnknownNamespaceError or StoreError.
        """
        with self._writing:
            if namespace is not None:
                self.check_namespace(namespace)
            now_s = self._clock.unix_s()
            held = self.contexts(namespace)
            victims = [c for c in held if older_than_s is not None and now_s - c.added_unix_s > older_than_s]
            if max_bytes is not None:
                gone = {c.id for c in victims}
                order = self._eviction_order([c for c in held if c.id not in gone])
                total = self.size_bytes if namespace is None else sum(c.size_bytes for c in held)
                victims += compaction.victims_for(order, total - sum(c.size_bytes for c in victims) - max_bytes, 0)
            self.remove(c.id for c in victims)
            return victims

    def remove(self, context_ids: Iterable[int]) -> None:
        """Removes these contexts, from disk too. Raises StoreError; each is then either there or gone, all others are
        there."""
        with self._writing:
            self._log.check_writable()
            victims = {i for i in context_ids if i in self._catalogue}
            segments = self._log.segments.values()
            for rewrite in compaction.plan(segments, victims, self._log.segment_bytes):
                try:
                    self._carry_out(rewrite, victims)
                except OSError as error:
                    raise StoreError(
                        f"{self.path}: no room was made: {error.strerror or error}. Nothing else is lost; free some "
                        f"disk space ({self._log.segment_bytes >> 10} KiB are needed while a segment is written anew)"
                    ) from error

    # Life

    def refresh(self) -> bool:
        """Takes in what the writer did since; True when something changed. Nothing to do in the writer itself."""
        if not self.read_only:
            return False
        with self._writing:
            self._log.refresh()
            return self._take_over()

    def flush(self) -> None:
        """Saves credit and, unless `fsync` is "never", forces everything to disk. Raises StoreError."""
        with self._writing:
            self._log.check_writable()
            self._save_credit()
            self._log.sync()

    def close(self) -> None:
        """Flushes and lets another writer in; may be called twice. Raises StoreError when the flush failed."""
        with self._writing:
            try:
                if self._log.is_writing:
                    self.flush()
            finally:
                self._log.release()

    def abandon(self) -> None:
        """Lets another writer in without writing anything, as the end of the process does."""
        self._log.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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

    # Inside

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

    def _reserve(self, namespace: str, payload_bytes: int) -> bool:
        """Makes room for a record; True when something had to go. Raises StoreError."""
        self._log.check_writable()
        needed = self._log.needed_bytes(namespace, payload_bytes)
        if needed > self.options.max_bytes * _LOW_WATER:
            raise StoreError(f"{needed} bytes to store, and the store is bounded by {self.options.max_bytes}: raise it")
        return self._make_room(needed)

    def _make_room(self, needed_bytes: int) -> bool:
        """Where a bound is passed, evicts down to the low water mark of both. True when it was. Raises StoreError."""
        has_evicted = False
        while True:
            total, index_bytes = self.size_bytes + needed_bytes, self._index_bytes()
            if total <= self.options.max_bytes and index_bytes <= self.options.max_index_bytes:
                return has_evicted
            order = self._eviction_order(self._catalogue)
            if has_evicted and not order:
                raise StoreError(f"{self.path}: no room in {self.options.max_bytes} bytes: raise the bound")
            too_many = math.ceil(len(order) * (1 - _LOW_WATER * self.options.max_index_bytes / max(1, index_bytes)))
            excess = total - int(self.options.max_bytes * _LOW_WATER)
            self.remove([c.id for c in compaction.victims_for(order, excess, too_many)])
            has_evicted = True

    def _eviction_order(self, contexts: Iterable[StoredContext]) -> list[StoredContext]:
        with self._state:
            return self._ledger.eviction_order(contexts, self._clock.unix_s(), self.options.grace_s)

    def _carry_out(self, rewrite: compaction.Rewrite, victims: Collection[int]) -> None:
        credit: dict[int, float] = {}
        if any(compaction.garbage_bytes(segment) for segment in rewrite.segments):
            ids = [c.id for c in self.contexts(rewrite.segments[0].header.namespace) if c.id not in victims]
            with self._state:
                credit = self._ledger.credited(ids, self._clock.unix_s())
        new = self._log.write_anew(rewrite, credit)
        with self._state:
            kept = {context.id for context in rewrite.kept}
            self._forget([c for s in rewrite.segments for c in s.contexts.values() if c.id not in kept])
            self._log.swap(rewrite, new)
            if new is not None:
                new.take_credits()
                for context in new.contexts.values():
                    self._catalogue.put(context, new)
        self._log.remove_replaced(rewrite)

    def _save_credit(self) -> None:
        with self._state:
            now_s = self._clock.unix_s()
            unsaved = self._ledger.unsaved(now_s)
            by_namespace: dict[str, dict[int, float]] = {}
            for context_id, accepted in unsaved.items():
                entry = self._catalogue.get(context_id)
                assert entry is not None, f"credit of context {context_id}, which is gone"
                by_namespace.setdefault(entry.context.namespace, {})[context_id] = accepted
        for namespace, accepted_by in by_namespace.items():
            payload = encode_credit(accepted_by, now_s)
            self._reserve(namespace, len(payload))
            segment, _ = self._log.append(namespace, Kind.CREDIT, payload)
            segment.take_credits()
            with self._state:
                self._ledger.saved(accepted_by)
        self._credit_saved_s = self._clock.monotonic_s()


def _context_bytes(session: str, num_tokens: int) -> int:
    return len(encode_context(session, 0, np.empty(0, np.int32), 0, 0, 0, 0.0)) + 4 * num_tokens


def _check_name(name: str, value: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = _MAX_NAME_BYTES + 1
    if size > _MAX_NAME_BYTES:
        raise StoreError(f"{name}: expected up to {_MAX_NAME_BYTES} bytes of UTF-8, got {value[:40]!r}...")


def _tokens(values: npt.ArrayLike, name: str) -> Tokens:
    array = np.asarray(values)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise StoreError(f"{name}: expected a list of token ids, got {array.dtype} of shape {array.shape}")
    if len(array) and not (int(array.min()) >= -(2**31) and int(array.max()) < 2**31):
        raise StoreError(f"{name}: expected 32-bit token ids, got {int(array.min())} to {int(array.max())}")
    return np.ascontiguousarray(array, dtype=np.int32)
