"""One segment file: read and checked once, appended to, its tokens taken from a mapping."""

from __future__ import annotations

import logging
import mmap
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from agentinfer.spec_sam.store.files import Files
from agentinfer.spec_sam.store.payloads import (
    ContextHead,
    PayloadError,
    StoredContext,
    Tokens,
    decode_context,
    decode_credit,
)
from agentinfer.spec_sam.store.records import (
    Fault,
    Header,
    Kind,
    Record,
    decode_header,
    encode_header,
    encode_record,
    scan,
)

logger = logging.getLogger(__name__)

SUFFIX = ".segment"


@dataclass(frozen=True, slots=True)
class Credit:
    """Accepted tokens by context, decayed to `at_unix_s`. The record with the highest sequence is the latest word."""

    sequence: int
    accepted: dict[int, float]
    at_unix_s: float


@dataclass(eq=False, slots=True)
class Segment:
    """`size_bytes` ends the last good record; bytes behind it are no concern of a reader.

    Owned by the store, which lets one thread at a time change it. Token arrays outlive the file: they hold the mapping.
    """

    path: Path
    header: Header
    size_bytes: int
    header_bytes: int
    contexts: dict[int, StoredContext] = field(default_factory=dict)
    _credits: list[Credit] = field(default_factory=list)
    # By context: file offsets of its payload, of its tokens and of the payload's end.
    _places: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    _map: mmap.mmap | None = None

    @property
    def sequence(self) -> int:
        return self.header.sequence

    @property
    def last_sequence(self) -> int:
        """The highest one seen in this segment, its own and the replaced ones' included."""
        credits = (credit.sequence for credit in self._credits)
        return max(self.sequence, *self.header.replaces, *self.contexts, *credits, 0)

    @classmethod
    def create(cls, path: Path, header: Header, files: Files, records: bytes = b"") -> Segment:
        """Writes the file to disk under another name first, so that it is there whole or not at all. Raises OSError."""
        head = encode_header(header)
        temporary = path.with_suffix(".tmp")
        try:
            files.create(temporary, head + records)
            files.sync(temporary)
            files.rename(temporary, path)
        except OSError:
            with suppress(OSError):
                files.remove(temporary)
            raise
        # From here on it is there for everybody, so a failure is no reason to act as if it were not.
        try:
            files.sync(path.parent)
        except OSError as error:
            logger.warning("%s: its name is not forced to disk: %s; a power cut may lose it", path, error)
        segment = cls(path, header, len(head), len(head))
        segment._take_in(records, len(head))
        return segment

    @classmethod
    def load(cls, path: Path) -> tuple[Segment, tuple[Fault, ...]]:
        """Reads and checks every byte; tells what is damaged.

        Raises HeaderDamagedError, SegmentVersionError or OSError.
        """
        # Read, not mapped: a writer may cut a torn tail off just now, and touching a page that is gone kills a process.
        with path.open("rb") as file:
            data = file.read()
            header, header_bytes = decode_header(data)
            segment = cls(path, header, header_bytes, header_bytes)
            faults = segment._take_in(data, 0)
            segment._map_file(file)
        return segment, faults

    def read_new(self) -> tuple[Fault, ...]:
        """What was appended since. A record that is being written just now is left for the next time."""
        with self.path.open("rb") as file:
            file.seek(self.size_bytes)
            data = file.read()
            if not data:
                return ()
            faults = self._take_in(data, self.size_bytes)
            self._map_file(file)
        return faults

    def append(self, kind: Kind, sequence: int, payload: bytes, files: Files) -> None:
        """Raises OSError; the segment is then as before, whatever part of the record the file got."""
        data = encode_record(kind, sequence, payload, self.sequence)
        try:
            files.write_at(self.path, self.size_bytes, data)
        except OSError:
            # Where this fails too: the next write goes to the same place, and a reader takes the rest for a torn tail.
            with suppress(OSError):
                files.truncate(self.path, self.size_bytes)
            raise
        self._take_in(data, self.size_bytes)

    def take_credits(self) -> list[Credit]:
        """What was read since the last call."""
        taken, self._credits = self._credits, []
        return taken

    def tokens(self, context: StoredContext) -> Tokens:
        """A read-only view of the mapping."""
        return np.frombuffer(self._mapped(), np.dtype("<i4"), context.num_tokens, self._places[context.id][1])

    def payload(self, context: StoredContext) -> bytes:
        """Its record's payload, byte for byte."""
        start, _, end = self._places[context.id]
        return self._mapped()[start:end]

    def _mapped(self) -> mmap.mmap:
        if self._map is None or len(self._map) < self.size_bytes:
            with self.path.open("rb") as file:  # appended to by this process, so the file is there
                self._map_file(file)
        assert self._map is not None
        return self._map

    def _map_file(self, file: BinaryIO) -> None:
        """Readers map what they have read at once: a moment later the writer may have removed the file."""
        self._map = mmap.mmap(file.fileno(), self.size_bytes, access=mmap.ACCESS_READ)

    def _take_in(self, data: bytes, base: int) -> tuple[Fault, ...]:
        found = scan(data, self.size_bytes, self.sequence, base)
        faults = list(found.faults)
        for record in found.records:
            payload = data[record.payload_start - base : record.payload_start + record.payload_bytes - base]
            try:
                if record.kind == Kind.CONTEXT:
                    self._take_in_context(record, decode_context(payload))
                elif record.kind == Kind.CREDIT:
                    self._credits.append(Credit(record.sequence, *decode_credit(payload)))
                # Kinds of later versions say nothing that this one could use, and stay where they are.
            except PayloadError as error:
                faults.append(Fault(record.start, "a record that makes sense", str(error)))
        self.size_bytes = found.end
        return tuple(faults)

    def _take_in_context(self, record: Record, head: ContextHead) -> None:
        start = record.payload_start
        self._places[record.sequence] = (start, start + head.tokens_offset, start + record.payload_bytes)
        self.contexts[record.sequence] = StoredContext(
            id=record.sequence,
            namespace=self.header.namespace,
            session=head.session,
            turn=head.turn,
            parent=head.parent,
            shared=head.shared,
            response_start=head.response_start,
            num_tokens=head.num_tokens,
            added_unix_s=head.added_unix_s,
            size_bytes=record.end - record.start,
        )
