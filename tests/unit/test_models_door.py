"""The public door and the commands: names, passing through, exit statuses, and an import that costs nothing."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentinfer import models
from agentinfer.errors import ModelError
from agentinfer.models import cli, store
from agentinfer.models.catalogue import CATALOGUE, EmbeddedModel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a conversion that writes one small file."""

    def build(model: EmbeddedModel, dtype: str, work_dir: Path, target: Path) -> None:
        (target / "config.json").write_text(f"{model.name} {dtype}")

    monkeypatch.setenv("AGENTINFER_CACHE", str(tmp_path))
    monkeypatch.setattr(store.ModelStore.__init__, "__defaults__", (None, build))
    return tmp_path


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_commands(parser.add_subparsers())
    args = parser.parse_args(["models", *arguments])
    status = args.run(args)
    assert isinstance(status, int)
    return status


def test_importing_the_door_loads_no_heavy_package() -> None:
    # Every server process imports it at start-up.
    heavy = ["torch", "numpy", "gguf", "tokenizers", "safetensors", "transformers", "sglang"]
    script = f"import agentinfer.models, agentinfer.models.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path", ["/models/llama", "meta-llama/Llama-3.1-8B", "smollm2-135m", "./embedded:smollm2-135m", ""]
)
def test_resolve_leaves_other_paths_alone(path: str) -> None:
    assert models.resolve(path) == path


def test_resolve_turns_an_embedded_name_into_its_directory(cache: Path) -> None:
    path = Path(models.resolve("embedded:smollm2-135m", dtype="float32"))
    assert path.parent == cache / "models"
    assert (path / "config.json").read_text() == "smollm2-135m float32"


@pytest.mark.parametrize("name", ["smollm2", "", "SMOLLM2-135M"])
def test_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(ModelError, match=f"called {name!r}; known: smollm2-135m, gemma3-270m"):
        models.resolve(f"embedded:{name}")


def test_unknown_dtype_lists_the_known() -> None:
    with pytest.raises(ModelError, match="bfloat16, float16, float32, not 'int4'"):
        models.prepare("smollm2-135m", dtype="int4")


def test_default_model_is_the_catalogue_s_first() -> None:
    assert models.catalogue()[0].name == models.DEFAULT_MODEL


def test_requirement_files_pin_the_catalogue_s_packages() -> None:
    folder = Path(__file__).parents[2] / "requirements"
    pinned = {line for file in folder.glob("*.txt") for line in re.split(r"\s*\n", file.read_text())}
    assert {requirement for model in CATALOGUE for requirement in model.requirements} <= pinned


def test_commands_prepare_list_verify_remove(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "smollm2-135m") == 0
    directory = Path(capsys.readouterr().out.strip())  # the path alone, for $(...)
    assert directory.is_dir()

    assert run("list") == 0
    listed = capsys.readouterr().out
    assert f"prepared  {directory}" in listed
    assert "gemma3-270m" in listed

    assert run("verify") == 0
    assert capsys.readouterr().out == f"ok  {directory}\n"

    (directory / "config.json").write_text("x" * len("smollm2-135m bfloat16"))
    assert run("verify", "smollm2-135m") == 1
    assert "expected" in capsys.readouterr().err

    assert run("remove", "smollm2-135m") == 0
    assert not directory.exists()
    assert run("remove", "smollm2-135m") == 0
    assert "was not prepared" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["prepare", "verify", "remove"])
def test_commands_refuse_an_unknown_name(command: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "nope") == 1
    assert "known: smollm2-135m, gemma3-270m" in capsys.readouterr().err


def test_verify_of_a_model_not_prepared_fails(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "gemma3-270m") == 1
    assert "agentinfer models prepare gemma3-270m" in capsys.readouterr().err
    assert run("verify") == 0
