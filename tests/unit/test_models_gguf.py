"""Reading GGUF: our header parser against the `gguf` package's own reader, and what a damaged file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agentinfer.errors import ModelError
from tests.models_builders import write_gguf

gguf = pytest.importorskip("gguf")

from agentinfer.models.gguf import GgufFile  # noqa: E402  needs the gguf package


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", request.param)


def test_metadata_is_what_the_reference_reader_finds(path: Path) -> None:
    reference = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    with GgufFile(path) as file:
        assert file.metadata == {key: value for key, value in reference.items() if not key.startswith("GGUF.")}


@pytest.mark.parametrize("max_elements", [1, 64 * 3, 1 << 22], ids=["row by row", "three rows", "whole"])
def test_tensors_are_what_the_reference_reader_finds(path: Path, max_elements: int) -> None:
    with GgufFile(path) as file:
        ours = {
            tensor.name: np.concatenate([np.atleast_2d(b) for b in file.rows(tensor, max_elements=max_elements)])
            for tensor in file.tensors
        }
    for tensor in gguf.GGUFReader(path).tensors:
        expected = np.atleast_2d(gguf.dequantize(tensor.data, tensor.tensor_type))
        np.testing.assert_array_equal(ours.pop(tensor.name), expected)
    assert not ours


def test_rows_come_in_the_order_asked_for(path: Path) -> None:
    with GgufFile(path) as file:
        tensor = next(t for t in file.tensors if t.name == "blk.0.attn_q.weight")
        plain = np.concatenate(list(file.rows(tensor)))
        order = np.random.default_rng(0).permutation(tensor.num_rows)
        np.testing.assert_array_equal(np.concatenate(list(file.rows(tensor, order, max_elements=640))), plain[order])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: b"", "empty"),
        (lambda whole: b"PK\x03\x04" + whole[4:], "PK"),
        (lambda whole: whole[:4] + (1).to_bytes(4, "little") + whole[8:], "GGUF version 1"),
        (lambda whole: whole[:200], "not a readable GGUF file"),
        (lambda whole: whole[:-64], "ends at byte"),
        (lambda whole: whole[:24] + (1 << 60).to_bytes(8, "little") + whole[32:], "a string of"),
    ],
    ids=["empty", "a zip", "version 1", "cut in the header", "cut in the weights", "absurd length"],
)
def test_damaged_file_is_named(path: Path, tmp_path: Path, damage, said: str) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=said) as raised:
        GgufFile(broken)
    assert str(broken) in str(raised.value)
