"""manifest.json of a prepared model: which files it has, and how to tell that they are still the ones written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from agentinfer.errors import ModelError

FILE_NAME = "manifest.json"
_FORMAT = "agentinfer.model"


@dataclass(frozen=True, slots=True)
class FileRecord:
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model directory holds besides the manifest itself. `source_sha256` is the GGUF file's."""

    model: str
    dtype: str
    source_sha256: str
    files: dict[str, FileRecord]

    @classmethod
    def of_files(cls, directory: Path, *, model: str, dtype: str, source_sha256: str) -> Manifest:
        """Describes the files now in `directory`; reads them all."""
        records = {path.name: _record(path) for path in sorted(directory.iterdir()) if path.name != FILE_NAME}
        return cls(model, dtype, source_sha256, records)

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Raises `ModelError` when there is no manifest or it is not one of ours."""
        path = directory / FILE_NAME
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value.pop("format") != _FORMAT:
                raise ValueError(f"format is not {_FORMAT}")
            files = {name: FileRecord(**record) for name, record in value.pop("files").items()}
            return cls(files=files, **value)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} is not a readable manifest ({error}); {_advice(directory)}") from error

    def save(self, directory: Path) -> None:
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n"
        (directory / FILE_NAME).write_text(text, encoding="utf-8")

    def check_sizes(self, directory: Path) -> None:
        """A check of microseconds: every file there and of its size. Raises `ModelError`."""
        for name, expected in self.files.items():
            try:
                size_bytes = (directory / name).stat().st_size
            except OSError as error:
                raise ModelError(f"{directory / name}: {error.strerror}; {_advice(directory)}") from error
            if size_bytes != expected.size_bytes:
                raise ModelError(
                    f"{directory / name} has {size_bytes} bytes, expected {expected.size_bytes}; {_advice(directory)}"
                )

    def check_content(self, directory: Path) -> None:
        """Reads every byte. Raises `ModelError` naming both sums."""
        self.check_sizes(directory)
        for name, expected in self.files.items():
            found = _record(directory / name)
            if found != expected:
                raise ModelError(
                    f"{directory / name} has sha256 {found.sha256}, expected {expected.sha256}; {_advice(directory)}"
                )


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _advice(directory: Path) -> str:
    return f"remove {directory} and run `agentinfer models prepare` again"
