"""The few operations on files that the store needs, in one class, so that a test can make each of them fail."""

from __future__ import annotations

import os
from pathlib import Path


class Files:
    """The operating system's own. Every method raises OSError; none leaves a descriptor open."""

    def create(self, path: Path, data: bytes) -> None:
        """A new file with this content, not yet on disk; what was there is replaced."""
        self._write(path, os.O_CREAT | os.O_TRUNC, 0, data)

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        """Overwrites or extends. On an error any part of `data` may have been written."""
        self._write(path, 0, offset, data)

    def truncate(self, path: Path, size_bytes: int) -> None:
        os.truncate(path, size_bytes)

    def sync(self, path: Path) -> None:
        """Returns when a file's content, or a folder's list of names, is on disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def _write(self, path: Path, flags: int, offset: int, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o644)
        try:
            rest = memoryview(data)
            while rest:
                written = os.pwrite(descriptor, rest, offset)
                rest, offset = rest[written:], offset + written
        finally:
            os.close(descriptor)
