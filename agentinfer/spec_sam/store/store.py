"""The store of finished contexts: what the agents said in which situation, kept across sessions and restarts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from agentinfer.clock import Clock, SystemClock
from agentinfer.spec_sam.store import compaction
from agentinfer.spec_sam.store.arguments import as_tokens, check_name, check_number
from agentinfer.spec_sam.store.errors import StoreError
from agentinfer.spec_sam.store.files import Files
from agentinfer.spec_sam.store.log import Log
from agentinfer.spec_sam.store.options import StoreOptions
from agentinfer.spec_sam.store.payloads import StoredContext, context_payload_bytes, encode_context, encode_credit
from agentinfer.spec_sam.store.records import Kind
from agentinfer.spec_sam.store.retrieval import Retriever
from agentinfer.spec_sam.store.sparse import SparseRetriever
from agentinfer.spec_sam.store.view import StoreView

logger = logging.getLogger(__name__)

# Room is made down to this share of a bound, so that not every add has to.
_LOW_WATER = 0.9


class ContextStore(StoreView):
    """One writer, any number of read-only stores on the same folder in other processes.

    Threads: any may call anything. `retrieve`, `credit` and the look-ups wait for no disk, except that a namespace's
    first `retrieve` builds its index (up to 0.1 ms a context). `add`, `remove`, `evict`, `flush`, `refresh` and `close`
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
        options, clock = options or StoreOptions(), clock or SystemClock()
        log = Log(Path(path), tokenizer, read_only, options, clock, files or Files())
        super().__init__(log, options, retriever, clock)
        self._credit_saved_s = clock.monotonic_s()
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
        before, said = as_tokens(prompt, "prompt"), as_tokens(response, "response")
        check_name("namespace", namespace)
        check_name("session", session)
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
                if not self._reserve(namespace, context_payload_bytes(session, len(text) - shared)):
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
        new = as_tokens(tokens, "tokens")
        check_name("namespace", namespace)
        check_name("session", session)
        check_number("turn", turn, 2**32 - 1)
        check_number("shared", shared, 2**31)
        check_number("response_start", response_start, len(new))
        with self._writing:
            self._reserve(namespace, context_payload_bytes(session, len(new)))
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
                try:
                    self._save_credit()
                except StoreError as error:  # the context is stored, and that is what was asked for
                    logger.warning("Credit is not saved, the next time it is tried again: %s", error)
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

    # Inside

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
                credit = self._ledger.take(ids, self._clock.unix_s())
        try:
            new = self._log.write_anew(rewrite, credit)
        except OSError:
            with self._state:
                self._ledger.give_back(credit)
            raise
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
        self._credit_saved_s = self._clock.monotonic_s()
        by_namespace: dict[str, dict[int, float]] = {}
        with self._state:
            now_s = self._clock.unix_s()
            for context_id, accepted in self._ledger.take_unsaved(now_s).items():
                entry = self._catalogue.get(context_id)
                assert entry is not None, f"credit of context {context_id}, which is gone"
                by_namespace.setdefault(entry.context.namespace, {})[context_id] = accepted
        while by_namespace:
            namespace, accepted_by = next(iter(by_namespace.items()))
            payload = encode_credit(accepted_by, now_s)
            try:
                self._reserve(namespace, len(payload))
                segment, _ = self._log.append(namespace, Kind.CREDIT, payload)
            except StoreError:
                with self._state:
                    for unsaved in by_namespace.values():
                        self._ledger.give_back(unsaved)
                raise
            segment.take_credits()
            del by_namespace[namespace]
