"""A segment's bytes: header, records, and how to find the good records in a file that is cut or damaged anywhere.

    segment   header | record | record | ...            everything little-endian and aligned to 8 bytes
    header    magic 8, version u32, header_bytes u32, sequence u64, lengths of the three parts u32 x 3, 0 u32,
              tokenizer fingerprint, namespace (UTF-8), sequences of the segments it replaces (u64), padding,
              checksum u32, 0 u32
    record    mark u32, kind u16, 0 u16, payload_bytes u32, payload checksum u32, sequence u64, 0 u32,
              checksum of this head u32, payload, padding

Checksums are CRC-32. The mark is a function of the segment's sequence: bytes of another segment, which a file system
may show after a crash in a block it had not written yet, are not taken for records of this one.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from agentinfer.spec_sam.store.errors import SegmentVersionError

MAGIC = b"AGICORP\n"
VERSION = 1

_HEADER = struct.Struct("<8sIIQIIII")
_RECORD = struct.Struct("<IHHIIQI")
_U32 = struct.Struct("<I")
RECORD_HEAD_BYTES = _RECORD.size + _U32.size
MAX_PAYLOAD_BYTES = 1 << 30
_MAX_HEADER_BYTES = 1 << 24


class Kind(IntEnum):
    CONTEXT = 1
    CREDIT = 2


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment holds, and which older segments it stands for once it is there."""

    sequence: int
    tokenizer: str
    namespace: str
    replaces: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A good record, from `start` to `end` in the file, padding included. `sequence` is unique in the store."""

    kind: int
    sequence: int
    start: int
    payload_bytes: int

    @property
    def payload_start(self) -> int:
        return self.start + RECORD_HEAD_BYTES

    @property
    def end(self) -> int:
        return self.payload_start + _padded(self.payload_bytes)


@dataclass(frozen=True, slots=True)
class Fault:
    """Damage at a byte offset. `is_tail`: no good record comes after it, as where a write was cut short."""

    offset: int
    expected: str
    seen: str
    is_tail: bool = False

    def __str__(self) -> str:
        return f"offset {self.offset}: expected {self.expected}, seen {self.seen}"


@dataclass(frozen=True, slots=True)
class Scan:
    """`end`: where the last good record ends, so that the next one can be written there."""

    records: tuple[Record, ...]
    faults: tuple[Fault, ...]
    end: int


class HeaderDamagedError(Exception):
    """Not a header of ours, or one that was damaged."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def encode_header(header: Header) -> bytes:
    tokenizer, namespace = header.tokenizer.encode(), header.namespace.encode()
    parts = tokenizer + namespace + struct.pack(f"<{len(header.replaces)}Q", *header.replaces)
    body_bytes = _padded(_HEADER.size + len(parts))
    lengths = (len(tokenizer), len(namespace), len(header.replaces))
    head = _HEADER.pack(MAGIC, VERSION, body_bytes + 8, header.sequence, *lengths, 0)
    body = (head + parts).ljust(body_bytes, b"\0")
    return body + _U32.pack(zlib.crc32(body)) + bytes(4)


def decode_header(data: bytes) -> tuple[Header, int]:
    """The header and its size in bytes. Raises HeaderDamagedError, or SegmentVersionError for a sound later one."""
    if len(data) < _HEADER.size:
        raise HeaderDamagedError(Fault(0, f"a header of at least {_HEADER.size} bytes", f"{len(data)} bytes"))
    magic, version, size, sequence, tokenizer_bytes, namespace_bytes, num_replaced, _ = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise HeaderDamagedError(Fault(0, f"magic {MAGIC!r}", repr(magic)))
    if not _HEADER.size + 8 <= size <= min(len(data), _MAX_HEADER_BYTES) or size % 8:
        raise HeaderDamagedError(Fault(12, f"a header within the file's {len(data)} bytes", f"{size} bytes"))
    (want,) = _U32.unpack_from(data, size - 8)
    found = zlib.crc32(memoryview(data)[: size - 8])
    if want != found or data[size - 4 : size] != bytes(4):
        raise HeaderDamagedError(Fault(size - 8, f"header checksum {want:08x}", f"{found:08x}"))
    if version != VERSION:
        raise SegmentVersionError(f"format version {version}, this agentinfer reads {VERSION}")
    cut = _HEADER.size
    tokenizer = data[cut : cut + tokenizer_bytes].decode()
    cut += tokenizer_bytes
    namespace = data[cut : cut + namespace_bytes].decode()
    replaces = struct.unpack_from(f"<{num_replaced}Q", data, cut + namespace_bytes)
    return Header(sequence, tokenizer, namespace, tuple(replaces)), size


def encode_record(kind: int, sequence: int, payload: bytes, segment: int) -> bytes:
    """`segment` is the sequence of the segment that the record is for."""
    head = _RECORD.pack(_mark(segment), kind, 0, len(payload), zlib.crc32(payload), sequence, 0)
    return head + _U32.pack(zlib.crc32(head)) + payload + bytes(_padded(len(payload)) - len(payload))


def record_bytes(payload_bytes: int) -> int:
    """What a record takes on disk."""
    return RECORD_HEAD_BYTES + _padded(payload_bytes)


def scan(data: bytes, start: int, segment: int, base: int = 0) -> Scan:
    """Every good record from file offset `start` on; `data` begins at file offset `base`.

    After damage the search goes on at the next place that reads as a whole record.
    """
    mark = _U32.pack(_mark(segment))
    records: list[Record] = []
    faults: list[Fault] = []
    end = place = start
    limit = base + len(data)
    while place < limit:
        found = _record_at(data, place, segment, base)
        if isinstance(found, Record):
            records.append(found)
            end = place = found.end
            continue
        next_good = _next_good(data, place, mark, segment, base)
        faults.append(Fault(found.offset, found.expected, found.seen, is_tail=next_good is None))
        if next_good is None:
            break
        place = next_good
    return Scan(tuple(records), tuple(faults), end)


def _record_at(data: bytes, place: int, segment: int, base: int) -> Record | Fault:
    at = place - base
    if len(data) - at < RECORD_HEAD_BYTES:
        return Fault(place, f"a record head of {RECORD_HEAD_BYTES} bytes", f"{len(data) - at} bytes to the end of file")
    mark, kind, zero, size, payload_crc, sequence, zero_too = _RECORD.unpack_from(data, at)
    (head_crc,) = _U32.unpack_from(data, at + _RECORD.size)
    head_found = zlib.crc32(memoryview(data)[at : at + _RECORD.size])
    if mark != _mark(segment):
        return Fault(place, f"record mark {_mark(segment):08x}", f"{mark:08x}")
    if head_crc != head_found:
        return Fault(place, f"record head checksum {head_crc:08x}", f"{head_found:08x}")
    if zero or zero_too or size > MAX_PAYLOAD_BYTES:
        return Fault(place, "a record head as this version writes it", f"{size} payload bytes, {zero}, {zero_too}")
    record = Record(kind, sequence, place, size)
    if record.end > base + len(data):
        return Fault(place, f"{record.end - place} bytes of record", f"{base + len(data) - place} to the end of file")
    body = memoryview(data)[record.payload_start - base : record.end - base]
    found = zlib.crc32(body[:size])
    if found != payload_crc:
        return Fault(place, f"payload checksum {payload_crc:08x}", f"{found:08x}")
    if any(body[size:]):
        return Fault(record.payload_start + size, "zeros up to the next record", body[size:].hex())
    return record


def _next_good(data: bytes, place: int, mark: bytes, segment: int, base: int) -> int | None:
    at = data.find(mark, place - base + 1)
    while at >= 0:
        if (base + at) % 8 == 0 and isinstance(_record_at(data, base + at, segment, base), Record):
            return base + at
        at = data.find(mark, at + 1)
    return None


def _mark(segment: int) -> int:
    return zlib.crc32(b"record of segment %d" % segment)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // 8) * 8
