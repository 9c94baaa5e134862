"""What can be set about a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from agentinfer.errors import ConfigError

FsyncPolicy = Literal["always", "rotate", "never"]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """`fsync` says when bytes are forced to disk: after every record; when a segment is full, compacted or closed; or
    never. A killed process loses nothing either way; a power cut loses at most what was not forced.

    `max_bytes` bounds the segments' bytes at every moment (a compaction needs up to `segment_bytes` on top while it
    runs; damaged segments that were set aside do not count). `max_index_bytes` bounds the retrieval index in memory.
    """

    max_bytes: int = 512 << 20
    max_index_bytes: int = 128 << 20
    segment_bytes: int = 16 << 20
    fsync: FsyncPolicy = "rotate"
    half_life_s: float = 3 * 86_400.0
    grace_s: float = 3600.0
    credit_save_s: float = 60.0

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if self.fsync not in get_args(FsyncPolicy):
            raise ConfigError(f"fsync: expected one of {', '.join(get_args(FsyncPolicy))}, got {self.fsync!r}")
        for name, low in (("max_bytes", 1 << 12), ("max_index_bytes", 1 << 12), ("segment_bytes", 1 << 10)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}: expected at least {low} bytes, got {getattr(self, name)}")
        for name in ("half_life_s", "grace_s", "credit_save_s"):
            if not getattr(self, name) >= 0 or (name == "half_life_s" and not self.half_life_s > 0):
                raise ConfigError(f"{name}: expected seconds from 0, got {getattr(self, name)}")
