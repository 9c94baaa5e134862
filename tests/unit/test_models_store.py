"""The model cache: whole or absent whatever is killed when, converted once, damage noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agentinfer.errors import ModelError
from agentinfer.models import store as store_module
from agentinfer.models.catalogue import EmbeddedModel
from agentinfer.models.store import ModelStore, cache_root
from tests.models_builders import record_for

MODEL = record_for(b"any bytes")
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}


def build(model: EmbeddedModel, dtype: str, work_dir: Path, target: Path) -> None:
    (work_dir / "scratch").write_bytes(b"left behind")
    for name, content in FILES.items():
        (target / name).write_bytes(content)


def refuse_to_build(model: EmbeddedModel, dtype: str, work_dir: Path, target: Path) -> None:
    raise AssertionError("a whole model is there, nothing needs building")


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "models").iterdir() if not path.name.endswith(".lock"))


def test_prepared_once_then_taken_from_the_cache(tmp_path: Path) -> None:
    directory = ModelStore(tmp_path, build).prepare(MODEL, "bfloat16")
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "manifest.json"} == FILES
    assert entries(tmp_path) == [directory.name]  # the work folder is gone
    assert ModelStore(tmp_path, refuse_to_build).prepare(MODEL, "bfloat16") == directory


def test_dtypes_and_templates_have_their_own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(tmp_path, build)
    first = store.directory(MODEL, "bfloat16")
    assert store.directory(MODEL, "float32") != first
    assert store.directory(record_for(b"other bytes"), "bfloat16") != first
    monkeypatch.setattr(store_module, "CONVERTER_VERSION", store_module.CONVERTER_VERSION + 1)
    assert store.directory(MODEL, "bfloat16") != first


def test_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    def fail(model: EmbeddedModel, dtype: str, work_dir: Path, target: Path) -> None:
        build(model, dtype, work_dir, target)
        raise ModelError("the file is damaged")

    with pytest.raises(ModelError, match="the file is damaged"):
        ModelStore(tmp_path, fail).prepare(MODEL, "bfloat16")
    assert entries(tmp_path) == []


def test_killed_at_any_file_system_call_leaves_all_or_nothing(tmp_path: Path) -> None:
    """SIGKILL before the 1st, 2nd, ... call that touches the file system, until a conversion gets through."""
    for num_calls in range(1, 200):
        root = tmp_path / str(num_calls)
        status = _prepare_killed_before_call(num_calls, root)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        store = ModelStore(root, build)
        directory = store.directory(MODEL, "bfloat16")
        if directory.exists():
            store.verify(directory)
        assert store.prepare(MODEL, "bfloat16") == directory
        store.verify(directory)
        leftovers = [name for name in entries(root) if name != directory.name]
        # After the rename the next start finds a whole model and does not take the lock; only then may its empty
        # work folder stay, until the next conversion or removal of that model.
        assert not any((root / "models" / name / "model").exists() for name in leftovers)
        store.remove(MODEL)
        assert entries(root) == []
    assert status == 0
    assert num_calls > 15, "the calls were not seen; the test would prove nothing"


def _prepare_killed_before_call(num_calls: int, root: Path) -> int:
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open" or event.startswith(("os.", "fcntl.", "shutil.", "tempfile.")):
            seen += 1
            if seen == num_calls:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        ModelStore(root, build).prepare(MODEL, "bfloat16")
        os._exit(0)
    finally:
        os._exit(1)  # an exception must not run on as a second pytest


def test_leftovers_of_a_killed_conversion_are_removed(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, build)
    directory = store.directory(MODEL, "bfloat16")
    leftover = directory.parent / f".{directory.name}.tmpabc" / "model"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    store.prepare(MODEL, "bfloat16")
    assert entries(tmp_path) == [directory.name]


def test_processes_that_ask_at_once_convert_once(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from agentinfer.models.store import ModelStore
        from tests.models_builders import record_for

        root = Path(sys.argv[1])

        def build(model, dtype, work_dir, target):
            with (root / "conversions").open("a") as log:
                log.write("x")
            time.sleep(0.5)
            (target / "config.json").write_text("{}")

        (root / f"ready{sys.argv[2]}").touch()
        while len(list(root.glob("ready*"))) < 3:
            time.sleep(0.01)
        print(ModelStore(root, build).prepare(record_for(b"any bytes"), "bfloat16"))
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."})
        for n in range(3)
    ]
    printed = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert printed == {str(ModelStore(tmp_path).directory(MODEL, "bfloat16"))}
    assert (tmp_path / "conversions").read_text() == "x"


@pytest.mark.parametrize("damaged", ["model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), Path.unlink], ids=["cut", "gone"])
def test_directory_that_lost_bytes_is_converted_again(tmp_path: Path, damaged: str, damage) -> None:
    store = ModelStore(tmp_path, build)
    directory = store.prepare(MODEL, "bfloat16")
    damage(directory / damaged)
    assert store.prepared(MODEL) == []
    assert store.directories(MODEL) == [directory]
    assert store.prepare(MODEL, "bfloat16") == directory
    store.verify(directory)
    assert entries(tmp_path) == [directory.name]


def test_verify_names_both_sums(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, build)
    directory = store.prepare(MODEL, "bfloat16")
    path = directory / "model.safetensors"
    path.write_bytes(b"W" + path.read_bytes()[1:])  # same size: a start does not notice, verify does
    assert store.prepare(MODEL, "bfloat16") == directory
    expected = json.loads((directory / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"]
    with pytest.raises(ModelError, match=r"has sha256 [0-9a-f]{64}, expected " + expected) as raised:
        store.verify(directory)
    assert str(path) in str(raised.value)


def test_unwritable_cache_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="AGENTINFER_CACHE"):
        ModelStore(tmp_path, build).prepare(MODEL, "bfloat16")


def test_missing_converter_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for name in ("agentinfer.models.convert", "agentinfer.models.tokenizer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ModelError, match=r"'tokenizers'.*agentinfer\[embedded-models\]"):
        ModelStore(tmp_path).prepare(MODEL, "bfloat16")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"AGENTINFER_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, Path("/own")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/agentinfer")),
        ({"AGENTINFER_CACHE": "", "XDG_CACHE_HOME": ""}, Path("/home/someone/.cache/agentinfer")),
    ],
    ids=["ours first", "then XDG", "empty counts as unset"],
)
def test_cache_root(variables: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGENTINFER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == expected
