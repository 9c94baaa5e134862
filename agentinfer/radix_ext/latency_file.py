"""The learned tool latencies on disk, so that a restarted server knows its tools.

One line says what the file is, its version, the length of what follows and a checksum of it; then comes JSON. A file is
replaced in one step and is on disk before it takes the old one's name, so a crash leaves the old one or the new one.
One server writes a file; of two that share it, the last one to save wins.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import Final

from agentinfer.clock import Clock
from agentinfer.errors import ConfigError
from agentinfer.sealed_file import SealError, is_leftover, replace_file, seal, unseal
from agentinfer.tool_gaps import ToolGaps

logger = logging.getLogger(__name__)

VERSION: Final = 1
SAVE_PERIOD_S: Final = 10.0
"""What a server that is killed forgets at most. The file has some kilobytes."""
MAX_FILE_BYTES: Final = 2 << 20
"""Above what the most tools with the longest names can fill."""

_MAGIC: Final = "agentinfer-tool-latency"
_MAX_SET_ASIDE: Final = 99


def encode(gaps: ToolGaps) -> bytes:
    """A file's content."""
    body = json.dumps(gaps.state(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return seal(_MAGIC, VERSION, body.encode())


def decode(content: bytes) -> ToolGaps:
    """The inverse of `encode`. Raises SealError."""
    try:
        return ToolGaps.from_state(json.loads(unseal(_MAGIC, VERSION, content)))
    except (ValueError, AttributeError, RecursionError) as error:
        raise SealError(f"its content cannot be taken: {error}") from None


def read(path: Path) -> ToolGaps | None:
    """What a file holds; None where there is none. Changes nothing. Raises SealError for any other trouble."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SealError(f"it cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_FILE_BYTES:
        raise SealError(f"it is longer than {MAX_FILE_BYTES} bytes: not a latency file")
    return decode(content)


class LatencyFile:
    """Loads the file at the start; saves it at most every `save_period_s` and at the end. `write` is thread-safe."""

    def __init__(self, path: Path, clock: Clock, save_period_s: float = SAVE_PERIOD_S) -> None:
        """Raises ConfigError where no file can be at `path`."""
        self.path = path
        self._clock = clock
        self._save_period_s = save_period_s
        self._saved_at_s = clock.monotonic_s()
        self._saved_num_observed = 0
        self._may_replace = True
        self._has_failed = False
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path}: {error}; name a file in a folder you can write to") from None
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file")

    def load(self) -> ToolGaps:
        """What was learned before. A file that cannot be used is set aside with a warning, and learning starts anew."""
        self._remove_leftovers()
        try:
            found = read(self.path)
        except SealError as error:
            self._set_aside(error)
            found = None
        gaps = ToolGaps() if found is None else found
        self._saved_num_observed = gaps.num_observed
        return gaps

    def is_due(self, gaps: ToolGaps) -> bool:
        """Whether there is something new to save and the last time is long enough ago."""
        is_new = gaps.num_observed != self._saved_num_observed
        return is_new and self._clock.monotonic_s() - self._saved_at_s >= self._save_period_s

    def save(self, gaps: ToolGaps) -> None:
        """Saves what is new, due or not. A failure is logged, and the next try is after the usual time."""
        if gaps.num_observed != self._saved_num_observed:
            self.write(self.take(gaps))

    def take(self, gaps: ToolGaps) -> bytes:
        """The content to `write`, counted as saved; for a caller that writes in another thread."""
        self._saved_at_s, self._saved_num_observed = self._clock.monotonic_s(), gaps.num_observed
        return encode(gaps)

    def write(self, content: bytes) -> None:
        """Replaces the file in one step. Never raises OSError: the old file stays and the trouble is logged once."""
        if not self._may_replace:
            return
        with self._lock:
            try:
                replace_file(self.path, content)
            except OSError as error:
                level = logging.DEBUG if self._has_failed else logging.WARNING
                logger.log(
                    level,
                    "%s cannot be written, so what is learned about tools is lost at the end: %s. Make room there or "
                    "name another file with --agentinfer-sched-latency-file",
                    self.path,
                    error,
                )
                self._has_failed = True
            else:
                self._has_failed = False

    def _set_aside(self, error: SealError) -> None:
        for number in range(1, _MAX_SET_ASIDE + 1):
            target = self.path.with_name(f"{self.path.name}.set-aside-{number}")
            if target.exists():
                continue
            try:
                os.rename(self.path, target)
            except OSError:
                break
            logger.warning(
                "%s cannot be used: %s. It is kept as %s, and tool latencies are learned anew. Remove it, or stop the "
                "server and put back a file that this version wrote",
                self.path,
                error,
                target,
            )
            return
        self._may_replace = False
        logger.warning(
            "%s cannot be used: %s. It cannot be set aside either, so it stays, and what is learned about tools is "
            "lost at the end. Move it away, or name another file with --agentinfer-sched-latency-file",
            self.path,
            error,
        )

    def _remove_leftovers(self) -> None:
        """Of a server that died while it wrote."""
        with contextlib.suppress(OSError):
            for found in self.path.parent.iterdir():
                if is_leftover(found) and found.name.startswith(f"{self.path.name}."):
                    found.unlink(missing_ok=True)
