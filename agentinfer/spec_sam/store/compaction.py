"""Making room: which contexts go, which segments are written anew without them, and the writing.

A new segment names the ones it replaces, so it takes their place in the moment it is there, and a crash before or after
that leaves the folder as it was or as it shall be.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentinfer.spec_sam.store.files import Files
from agentinfer.spec_sam.store.folder import segment_path
from agentinfer.spec_sam.store.payloads import StoredContext, encode_credit
from agentinfer.spec_sam.store.records import Header, Kind, encode_record
from agentinfer.spec_sam.store.segment import Segment

logger = logging.getLogger(__name__)

# A segment with this share of bytes that no longer say anything (old credits) is worth writing anew.
_GARBAGE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Rewrite:
    """These segments, all of one namespace, become one that holds `kept`."""

    segments: tuple[Segment, ...]
    kept: tuple[StoredContext, ...]

    @property
    def kept_bytes(self) -> int:
        return sum(context.size_bytes for context in self.kept)


def garbage_bytes(segment: Segment) -> int:
    """Bytes of a segment that are neither header nor context."""
    held = sum(context.size_bytes for context in segment.contexts.values())
    return segment.size_bytes - segment.header_bytes - held


def victims_for(order: Sequence[StoredContext], excess_bytes: int, excess_contexts: int) -> list[StoredContext]:
    """The first of `order` that free so many bytes and so many places in the index."""
    victims: list[StoredContext] = []
    for context in order:
        if excess_bytes <= 0 and len(victims) >= excess_contexts:
            break
        victims.append(context)
        excess_bytes -= context.size_bytes
    return victims


def plan(segments: Iterable[Segment], victims: Collection[int], segment_bytes: int) -> list[Rewrite]:
    """Which segments to write anew: those with a victim or much garbage, packed together up to `segment_bytes`."""
    rewrites: list[Rewrite] = []
    open_rewrite: dict[str, Rewrite] = {}
    for segment in sorted(segments, key=lambda s: s.sequence):
        kept = tuple(context for context in segment.contexts.values() if context.id not in victims)
        has_garbage = garbage_bytes(segment) > _GARBAGE_SHARE * segment.size_bytes
        if len(kept) == len(segment.contexts) and not has_garbage:
            continue
        namespace = segment.header.namespace
        before = open_rewrite.get(namespace)
        this = Rewrite((segment,), kept)
        if before is not None and before.kept_bytes + this.kept_bytes <= segment_bytes:
            this = Rewrite((*before.segments, segment), (*before.kept, *kept))
            rewrites.remove(before)
        open_rewrite[namespace] = this
        rewrites.append(this)
    return rewrites


def write(
    rewrite: Rewrite,
    folder: Path,
    sequences: tuple[int, int],
    credit: Mapping[int, float],
    now_s: float,
    files: Files,
) -> Segment | None:
    """The new segment, on disk and in place; None where there is nothing to hold. The old files stay. Raises OSError.

    `sequences` are the new segment's and its credit record's. `credit` is what the old ones' credit records said, which
    may be of contexts in other segments too.
    """
    if not rewrite.kept and not credit:
        return None
    sequence, credit_sequence = sequences
    old = rewrite.segments[0].header
    replaces = tuple(sorted(replaced_by(rewrite, folder)))
    records = [
        encode_record(Kind.CONTEXT, context.id, segment.payload(context), sequence)
        for segment in rewrite.segments
        for context in rewrite.kept
        if context.id in segment.contexts
    ]
    if credit:
        records.append(encode_record(Kind.CREDIT, credit_sequence, encode_credit(credit, now_s), sequence))
    header = Header(sequence, old.tokenizer, old.namespace, replaces)
    return Segment.create(segment_path(folder, sequence), header, files, b"".join(records))


def remove_replaced(rewrite: Rewrite, folder: Path, files: Files) -> set[Path]:
    """Removes the old files, and those they replaced in their time that could not be removed; returns what stays.

    What stays is passed over by whoever loads the folder, since the new segment names it.
    """
    staying: set[Path] = set()
    for sequence in sorted(replaced_by(rewrite, folder)):  # oldest first: a replaced one never outlives its successor
        path = segment_path(folder, sequence)
        try:
            files.remove(path)
        except OSError as error:
            logger.warning("%s: no longer needed but cannot be removed: %s", path, error)
            staying.add(path)
    return staying


def replaced_by(rewrite: Rewrite, folder: Path) -> set[int]:
    older = {i for s in rewrite.segments for i in s.header.replaces if segment_path(folder, i).exists()}
    return {s.sequence for s in rewrite.segments} | older
