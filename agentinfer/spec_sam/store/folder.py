"""The folder of a store: whose it is, its one writer's lock, its segments, and what a crash or damage left in it.

store.lock            held (flock) by the writer, whose process id it names; also says that this is a store
<sequence>.segment    names are never used again, so a reader that has one mapped knows it for good
<sequence>.tmp        a segment being made, or what a killed writer left
<sequence>.corrupt    a damaged segment that was set aside; nothing reads it
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agentinfer.spec_sam.store.errors import (
    NotAStoreError,
    SegmentVersionError,
    StoreError,
    StoreLockedError,
    WrongTokenizerError,
)
from agentinfer.spec_sam.store.files import Files
from agentinfer.spec_sam.store.payloads import encode_credit
from agentinfer.spec_sam.store.records import Fault, Header, HeaderDamagedError, Kind, encode_record
from agentinfer.spec_sam.store.segment import SUFFIX, Segment

logger = logging.getLogger(__name__)

LOCK = "store.lock"
CORRUPT_SUFFIX = ".corrupt"


@dataclass(frozen=True, slots=True)
class Damage:
    """A fault and the file it is in. `segment` is None where not even the header reads."""

    path: Path
    fault: Fault
    segment: Segment | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.fault}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Segments that count, oldest first; `replaced` ones are there but stand no more."""

    segments: tuple[Segment, ...]
    replaced: tuple[Path, ...]
    damage: tuple[Damage, ...]


class WriterLock:
    """Raises StoreLockedError when another process, or another store of this process, holds it."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / LOCK).open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise StoreLockedError(
                f"{folder}: process {holder} writes to this store, and there can be one writer. Open it read-only, "
                "give this server a folder of its own, or stop that process"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def writer_is_alive(folder: Path) -> bool:
    """Whether some process holds the writer's lock just now. Changes nothing."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def prepare(folder: Path) -> None:
    """Makes the folder for a writer where there is none. Raises NotAStoreError when something else is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            check(folder)
    except OSError as error:
        raise NotAStoreError(
            f"{folder}: cannot hold a store: {error.strerror or error}. Name a folder that this user can write to"
        ) from error


def check(folder: Path) -> None:
    """Raises NotAStoreError unless this is the folder of a store."""
    if not folder.is_dir():
        seen = "it is a file" if folder.exists() else "no such folder"
        raise NotAStoreError(f"{folder}: expected the folder of a context store, but {seen}. Check the path")
    names = sorted(path.name for path in folder.iterdir())
    if LOCK not in names and not any(name.endswith((SUFFIX, CORRUPT_SUFFIX)) for name in names):
        seen = f"it holds {', '.join(names[:3])}" if names else "it is empty"
        raise NotAStoreError(f"{folder}: expected the folder of a context store, but {seen}. Check the path")


def segment_path(folder: Path, sequence: int) -> Path:
    return folder / f"{sequence:016x}{SUFFIX}"


def load(folder: Path, tokenizer: str | None, known: Mapping[Path, Segment]) -> Loaded:
    """Reads what is new: segments that are not `known`, and what was appended to those that are. Changes no file.

    Raises WrongTokenizerError, SegmentVersionError or OSError; FileNotFoundError when a writer removed a segment just
    now, in which case asking again gives the new state.
    """
    loaded: list[Segment] = []
    damage: list[Damage] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            if path in known:
                segment = known[path]
                faults = segment.read_new()
            else:
                segment, faults = Segment.load(path)
        except HeaderDamagedError as error:
            damage.append(Damage(path, error.fault))
            continue
        except SegmentVersionError as error:
            raise SegmentVersionError(f"{path}: {error}. Use that version, or another folder") from None
        tokenizer = tokenizer or segment.header.tokenizer
        if segment.header.tokenizer != tokenizer:
            raise WrongTokenizerError(
                f"{path}: its tokens are of tokenizer {segment.header.tokenizer}, expected {tokenizer}. Token ids mean "
                "nothing under another tokenizer: give each model a store of its own, and import the sessions' text"
            )
        loaded.append(segment)
        damage += [Damage(path, fault, segment) for fault in faults]
    gone = {sequence for segment in loaded for sequence in segment.header.replaces}
    return Loaded(
        segments=tuple(s for s in loaded if s.sequence not in gone),
        replaced=tuple(s.path for s in loaded if s.sequence in gone),
        damage=tuple(d for d in damage if d.segment is None or d.segment.sequence not in gone),
    )


def recover(folder: Path, loaded: Loaded, next_sequence: Callable[[], int], files: Files) -> bool:
    """What a writer does before its first write; True when segments changed and have to be loaded again.

    Leftovers go; a torn tail is cut off; of a damaged segment the good records are saved into a new one, and it is set
    aside. At every step the folder reads as before or as after. Raises StoreError.
    """
    try:
        for leftover in [*folder.glob("*.tmp"), *loaded.replaced]:
            files.remove(leftover)
        changed = False
        torn: set[Path] = set()
        damaged: dict[Path, Segment | None] = {}
        for each in loaded.damage:
            is_torn = each.segment is not None and each.fault.is_tail
            logger.warning("%s: %s", each, "cut off there, nothing whole follows" if is_torn else "set aside")
            if is_torn:
                torn.add(each.path)
            else:
                damaged[each.path] = each.segment
        for path, segment in damaged.items():
            if segment is not None:
                _save_good_records(folder, segment, next_sequence(), files)
            files.rename(path, path.with_suffix(CORRUPT_SUFFIX))
            changed = True
        for segment in loaded.segments:
            if segment.path in torn and segment.path not in damaged:
                files.truncate(segment.path, segment.size_bytes)
        files.sync(folder)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot be repaired after a crash: {error.strerror or error}. Nothing is lost; open it "
            "read-only, or make room and rights for this user"
        ) from error
    return changed


def _save_good_records(folder: Path, segment: Segment, sequence: int, files: Files) -> None:
    old = segment.header
    header = Header(sequence, old.tokenizer, old.namespace, (*old.replaces, old.sequence))
    records = [encode_record(Kind.CONTEXT, i, segment.payload(c), sequence) for i, c in segment.contexts.items()]
    records += [
        encode_record(Kind.CREDIT, c.sequence, encode_credit(c.accepted, c.at_unix_s), sequence)
        for c in segment.take_credits()
    ]
    target = segment_path(folder, sequence)
    Segment.create(target, header, files, b"".join(records))
    logger.warning("%s: %d whole contexts of it saved to %s", segment.path, len(segment.contexts), target)
