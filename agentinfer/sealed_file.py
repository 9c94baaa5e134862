"""Small files that are either whole or refused: a first line with version, length and checksum, replaced in one step.

A crash at any moment leaves the old file or the new one, and damage of any byte is seen when the file is read.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from agentinfer.errors import AgentInferError


class SealError(AgentInferError):
    """A file's content that cannot be used; the message says what was seen, beginning with "it"."""


def seal(magic: str, version: int, body: bytes) -> bytes:
    """A file's content: one line that says what it is, then `body`."""
    return _first_line(magic, version, body) + b"\n" + body


def unseal(magic: str, version: int, content: bytes) -> bytes:
    """The inverse of `seal`. Raises SealError."""
    first, _, body = content.partition(b"\n")
    words = first.split(b" ")
    kind = magic.removeprefix("agentinfer-").replace("-", " ")
    if words[0] != magic.encode():
        raise SealError(f"it begins with {content[:40]!r}, expected {magic!r}: not a {kind} file")
    if len(words) > 1 and words[1].isdigit() and int(words[1]) != version:
        raise SealError(f"it has version {words[1].decode()}, this agentinfer reads and writes version {version}")
    if first != _first_line(magic, version, body):
        raise SealError(f"its {len(body)} bytes of content do not fit its first line {first[:80]!r}: damaged")
    return body


def replace_file(path: Path, content: bytes) -> None:
    """Puts `content` at `path`, on disk before it has the name. Raises OSError; the old file is there until then."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_leftover(path: Path, suffix: str = "") -> bool:
    """Whether a server that died while it wrote left this; `suffix` is that of the files it writes."""
    name, _, process = path.name.removesuffix(".tmp").rpartition(".")
    return path.name.endswith(".tmp") and process.isdigit() and name.endswith(suffix)


def _first_line(magic: str, version: int, body: bytes) -> bytes:
    checksum = hashlib.blake2b(body, digest_size=16).hexdigest()
    return f"{magic} {version} {len(body)} {checksum}".encode()
