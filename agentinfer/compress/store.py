"""The compositions a server knows: by what they stand for, within a budget of bytes, and in a folder across restarts.

Dropping one loses nothing: the clients hold their histories, and a request without a composition has the client's own
words. So files are written without ceremony, a damaged one is set aside, and a full disk costs a warning.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agentinfer.compress.composition import Composition
from agentinfer.compress.composition_file import MAGIC, SUFFIX, VERSION, decode, encode
from agentinfer.errors import ConfigError
from agentinfer.sealed_file import SealError, is_leftover, replace_file, unseal

logger = logging.getLogger(__name__)

_SET_ASIDE: Final = ".damaged"


class CompositionStore:
    """Not thread-safe. The least recently used compositions go first; a session's older ones stay while there is room,
    since a client may go back to where they apply."""

    def __init__(self, max_bytes: int, folder: Path | None = None) -> None:
        """Loads what is in `folder`. Raises ConfigError where there can be no such folder."""
        self._max_bytes = max_bytes
        self._folder = folder
        self._known: OrderedDict[bytes, tuple[Composition, int]] = OrderedDict()
        self._latest: dict[str, bytes] = {}
        self._session_of: dict[bytes, str] = {}
        self._size_bytes = 0
        self._has_failed = False
        if folder is not None:
            self._load(folder)

    def find(self, chain: Sequence[bytes]) -> Composition | None:
        """The composition for the longest beginning of a history; `chain[i]` is the digest of its messages [0, i]."""
        for link in reversed(chain):
            if link in self._known:
                self._known.move_to_end(link)
                return self._known[link][0]
        return None

    def latest(self, session_id: str) -> Composition | None:
        """The one last put for a session; it has all that was ever taken out of the session's context."""
        digest = self._latest.get(session_id)
        return None if digest is None else self._known[digest][0]

    def put(self, session_id: str, composition: Composition) -> None:
        """Keeps a composition, and writes it to the folder where there is one. Never raises OSError."""
        content = encode(session_id, composition)
        self._keep(session_id, composition, len(content))
        if self._folder is not None and composition.digest in self._known:
            self._write(self._path(self._folder, composition.digest), content)

    def forget_session(self, session_id: str) -> None:
        """Drops all compositions made for a session: it was closed by its client or expired."""
        for digest in [digest for digest, session in self._session_of.items() if session == session_id]:
            self._drop(digest)

    @property
    def size_bytes(self) -> int:
        """What the compositions take in their written form."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._known)

    def check_integrity(self) -> None:
        """Recompute every derived count; raises AssertionError naming the broken rule."""
        _require(self._size_bytes == sum(size for _, size in self._known.values()), "bytes are those of what is known")
        _require(self._session_of.keys() == self._known.keys(), "every composition has its session")
        _require(all(digest in self._known for digest in self._latest.values()), "a latest composition is known")
        _require(self._size_bytes <= self._max_bytes or len(self._known) <= 1, "the budget holds")

    def _keep(self, session_id: str, composition: Composition, size_bytes: int) -> None:
        if composition.digest in self._known:
            self._forget(composition.digest)
        self._known[composition.digest] = (composition, size_bytes)
        self._size_bytes += size_bytes
        self._session_of[composition.digest] = session_id
        self._latest[session_id] = composition.digest
        while self._size_bytes > self._max_bytes and len(self._known) > 1:
            self._drop(next(iter(self._known)))

    def _drop(self, digest: bytes) -> None:
        self._forget(digest)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._path(self._folder, digest).unlink(missing_ok=True)

    def _forget(self, digest: bytes) -> None:
        _, size_bytes = self._known.pop(digest)
        self._size_bytes -= size_bytes
        session_id = self._session_of.pop(digest)
        if self._latest.get(session_id) == digest:
            del self._latest[session_id]
            older = [each for each in self._known if self._session_of[each] == session_id]
            if older:
                self._latest[session_id] = max(older, key=lambda each: self._known[each][0].covers)

    def _load(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
        except OSError as error:
            raise ConfigError(f"{folder}: {error}; name a folder you can write to") from None
        for path in paths:
            if is_leftover(path, SUFFIX):
                path.unlink(missing_ok=True)
            elif path.suffix == SUFFIX:
                self._load_file(path)

    def _load_file(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            session_id, composition = decode(unseal(MAGIC, VERSION, content))
        except (OSError, SealError) as error:
            aside = path.with_name(path.name + _SET_ASIDE)
            with contextlib.suppress(OSError):
                path.rename(aside)
            logger.warning(
                "%s cannot be used: %s. It is kept as %s; its session goes on with its whole context",
                path,
                error,
                aside,
            )
            return
        self._keep(session_id, composition, len(content))

    def _write(self, path: Path, content: bytes) -> None:
        try:
            replace_file(path, content)
            self._has_failed = False
        except OSError as error:
            level = logging.DEBUG if self._has_failed else logging.WARNING
            logger.log(
                level,
                "%s cannot be written, so compressed contexts are lost at the end: %s. Make room there or name "
                "another folder",
                path,
                error,
            )
            self._has_failed = True

    @staticmethod
    def _path(folder: Path, digest: bytes) -> Path:
        return folder / f"{digest.hex()}{SUFFIX}"


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(f"CompositionStore: {rule}")
