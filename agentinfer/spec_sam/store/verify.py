"""Reading a whole store to say what is damaged, changing nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agentinfer.spec_sam.store import folder
from agentinfer.spec_sam.store.errors import StoreError
from agentinfer.spec_sam.store.folder import Damage


@dataclass(frozen=True, slots=True)
class Verification:
    """`writer_tails`: torn tails while a writer is at work, which may just be writing them; no damage."""

    segments: int
    contexts: int
    size_bytes: int
    damage: tuple[Damage, ...]
    writer_tails: tuple[Damage, ...] = ()


def verify_store(path: Path | str) -> Verification:
    """Reads every byte. Raises NotAStoreError, WrongTokenizerError (segments of two tokenizers) or StoreError."""
    where = Path(path)
    folder.check(where)
    try:
        loaded = folder.load(where, None, {})
    except FileNotFoundError:
        raise StoreError(f"{where}: its writer removed a segment meanwhile; run this again") from None
    except OSError as error:
        raise StoreError(f"{where}: cannot be read: {error.strerror or error}") from error
    tails = tuple(d for d in loaded.damage if d.segment is not None and d.fault.is_tail)
    is_written = folder.writer_is_alive(where)
    return Verification(
        segments=len(loaded.segments),
        contexts=sum(len(segment.contexts) for segment in loaded.segments),
        size_bytes=sum(segment.size_bytes for segment in loaded.segments),
        damage=tuple(d for d in loaded.damage if not (is_written and d in tails)),
        writer_tails=tails if is_written else (),
    )
