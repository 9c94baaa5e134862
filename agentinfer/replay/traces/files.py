"""A trace file's bytes and lines: plain, .gz, .bz2 or .xz by magic number, with its checksum for provenance."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from agentinfer.errors import TraceError

_DECOMPRESSORS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\xfd7zXZ\x00", lzma.decompress),
    (b"\x1f\x8b", gzip.decompress),
    (b"BZh", bz2.decompress),
)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A trace as read: `sha256` is of the file on disk, `data` is decompressed."""

    path: Path
    sha256: str
    data: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Number (from 1) and content of each line that is not blank."""
        for number, line in enumerate(self.data.split(b"\n"), 1):
            if line.strip():
                yield number, line

    def objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """`FILE:LINE` and the JSON object of each line. Raises TraceError at the first line that is none."""
        for number, line in self.lines():
            where = f"{self.path}:{number}"
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise TraceError(f"{where}: not JSON ({error}); expected one JSON object a line") from error
            if not isinstance(value, dict):
                raise TraceError(f"{where}: expected a JSON object, got {type(value).__name__}")
            yield where, value


def load(path: Path) -> TraceFile:
    """Read and decompress. Raises TraceError when the file is missing, empty, damaged or in a form we do not read."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if raw.startswith(_ZSTD_MAGIC):
        raise TraceError(f"{path}: compressed with zstd, which is not read here; expected plain, .xz, .gz or .bz2")
    data = raw
    for magic, decompress in _DECOMPRESSORS:
        if raw.startswith(magic):
            try:
                data = decompress(raw)
            except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
                raise TraceError(f"{path}: damaged compressed file: {error}") from error
            break
    if not data.strip():
        raise TraceError(f"{path}: empty; expected recorded sessions")
    return TraceFile(path=path, sha256=hashlib.sha256(raw).hexdigest(), data=data)
