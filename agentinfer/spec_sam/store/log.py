"""The log under the store: segments in a folder, appended to, written anew, forced to disk. It knows no use of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from agentinfer.clock import Clock
from agentinfer.spec_sam.store import compaction, folder
from agentinfer.spec_sam.store.compaction import Rewrite
from agentinfer.spec_sam.store.errors import StoreError
from agentinfer.spec_sam.store.files import Files
from agentinfer.spec_sam.store.options import StoreOptions
from agentinfer.spec_sam.store.records import Header, Kind, encode_header, record_bytes
from agentinfer.spec_sam.store.segment import Segment

logger = logging.getLogger(__name__)

# A reader asks again when the writer removed a segment between listing and reading; each time there is a newer one.
_READ_ATTEMPTS = 8


class Log:
    """One thread at a time may change it; `segments` is replaced as a whole, so any thread may read it."""

    def __init__(
        self, path: Path, tokenizer: str | None, read_only: bool, options: StoreOptions, clock: Clock, files: Files
    ) -> None:
        """Opens; a writer takes the lock and repairs what a crash left. Raises StoreError."""
        self.path = path
        self.tokenizer = tokenizer
        self.read_only = read_only
        self.segments: dict[Path, Segment] = {}
        self._options = options
        self._clock = clock
        self._files = files
        self._last_sequence = 0
        self._unsynced: set[Path] = set()
        self._reported: set[str] = set()
        self._leftovers: set[Path] = set()
        self._lock: folder.WriterLock | None = None
        if read_only:
            folder.check(path)
            self.refresh()
            return
        folder.prepare(path)
        self._lock = folder.WriterLock(path)
        try:
            self._load_and_repair()
        except BaseException:
            self.release()
            raise

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self.segments.values())

    @property
    def segment_bytes(self) -> int:
        """Where a segment is full: small beside the bound, so that little is written anew at a time."""
        return min(self._options.segment_bytes, max(1024, self._options.max_bytes // 8))

    @property
    def is_writing(self) -> bool:
        return self._lock is not None

    def check_writable(self) -> None:
        if self.read_only:
            raise StoreError(f"{self.path} is open read-only; one process may open it for writing")
        if self._lock is None:
            raise StoreError(f"{self.path} was closed; open it again")

    def next_sequence(self) -> int:
        # Microseconds of the clock: a number is not given again even when all segments that knew of it are gone.
        self._last_sequence = max(self._last_sequence + 1, int(self._clock.unix_s() * 1e6))
        return self._last_sequence

    def needed_bytes(self, namespace: str, payload_bytes: int) -> int:
        """What appending takes at most: the record, and a new segment's header."""
        return record_bytes(payload_bytes) + len(encode_header(Header(0, self.tokenizer or "", namespace)))

    def append(self, namespace: str, kind: Kind, payload: bytes) -> tuple[Segment, int]:
        """Where the record lies and its sequence. Raises StoreError; the log is then as before."""
        if self.tokenizer is None:
            raise StoreError(f"{self.path} is empty and bound to no tokenizer yet; open it with a fingerprint")
        try:
            segment = self._segment_for(namespace, record_bytes(len(payload)))
            sequence = self.next_sequence()
            segment.append(kind, sequence, payload, self._files)
            self._unsynced.add(segment.path)
            if self._options.fsync == "always":
                self._sync(segment.path)
        except OSError as error:
            raise self._cannot_write(error) from error
        return segment, sequence

    def write_anew(self, rewrite: Rewrite, credit: Mapping[int, float]) -> Segment | None:
        """The segment that takes the place of these, on disk. `swap` makes it count here. Raises OSError."""
        sequences = (self.next_sequence(), self.next_sequence())
        return compaction.write(rewrite, self.path, sequences, credit, self._clock.unix_s(), self._files)

    def swap(self, rewrite: Rewrite, new: Segment | None) -> None:
        gone = {segment.path for segment in rewrite.segments}
        self._unsynced -= gone
        kept = {path: segment for path, segment in self.segments.items() if path not in gone}
        self.segments = kept if new is None else {**kept, new.path: new}

    def remove_replaced(self, rewrite: Rewrite) -> None:
        """The old files; what cannot be removed is passed over from now on and counted in `leftover_bytes`."""
        self._leftovers |= compaction.remove_replaced(rewrite, self.path, self._files)
        self._leftovers = {path for path in self._leftovers if path.exists()}

    @property
    def leftover_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._leftovers)

    def sync(self) -> None:
        """Forces everything to disk unless that is never wanted. Raises StoreError."""
        if self._options.fsync == "never":
            return
        try:
            for path in sorted(self._unsynced):
                self._sync(path)
        except OSError as error:
            raise self._cannot_write(error) from error

    def refresh(self) -> None:
        """Takes in what the writer did since. Changes no file. Raises StoreError."""
        for _ in range(_READ_ATTEMPTS):
            try:
                loaded = folder.load(self.path, self.tokenizer, self.segments)
                break
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StoreError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        else:
            raise StoreError(f"{self.path}: segments vanish faster than they can be read; try again")
        for damage in loaded.damage:
            # The tail may be a record that the writer is at; the next refresh reads it, whole then.
            is_torn = damage.segment is not None and damage.fault.is_tail
            if not is_torn and str(damage) not in self._reported:
                self._reported.add(str(damage))
                logger.warning("%s: passed over; the next writer of this store sets it aside", damage)
        self._take_over(loaded)

    def release(self) -> None:
        """Lets another writer in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _load_and_repair(self) -> None:
        try:
            loaded = folder.load(self.path, self.tokenizer, {})
            self._last_sequence = max((segment.sequence for segment in loaded.segments), default=0)
            if folder.recover(self.path, loaded, self.next_sequence, self._files):
                loaded = folder.load(self.path, self.tokenizer, {})
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        self._take_over(loaded)

    def _take_over(self, loaded: folder.Loaded) -> None:
        self.segments = {segment.path: segment for segment in loaded.segments}
        for segment in loaded.segments:
            self._last_sequence = max(self._last_sequence, segment.last_sequence)
            self.tokenizer = self.tokenizer or segment.header.tokenizer

    def _segment_for(self, namespace: str, new_bytes: int) -> Segment:
        """The namespace's newest segment, or a new one when that is full. Raises OSError."""
        assert self.tokenizer is not None
        own = [segment for segment in self.segments.values() if segment.header.namespace == namespace]
        newest = max(own, key=lambda segment: segment.sequence, default=None)
        if newest is not None:
            if newest.size_bytes + new_bytes <= self.segment_bytes or newest.size_bytes == newest.header_bytes:
                return newest
            if self._options.fsync != "never":
                self._sync(newest.path)
        sequence = self.next_sequence()
        path = folder.segment_path(self.path, sequence)
        segment = Segment.create(path, Header(sequence, self.tokenizer, namespace), self._files)
        self.segments = {**self.segments, path: segment}
        return segment

    def _sync(self, path: Path) -> None:
        if path in self._unsynced:
            self._files.sync(path)
            self._unsynced.discard(path)

    def _cannot_write(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.path}: cannot be written: {error.strerror or error}. What was stored stays; free disk space or "
            "lower the store's bound"
        )
