"""Conversion: names, row order, rounding, norms, and the configuration files, on models of a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agentinfer.errors import ModelError
from tests.models_builders import HEADS, KV_HEADS, SENTENCEPIECE_TOKENS, random_tensors, write_gguf

pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
safetensors = pytest.importorskip("safetensors.numpy")

from agentinfer.models.convert import convert, model_config  # noqa: E402  need the packages above
from agentinfer.models.gguf import GgufFile  # noqa: E402
from agentinfer.models.tokenizer import implied_merges  # noqa: E402
from agentinfer.models.weights import bfloat16_bits, hugging_face_name, rotary_row_order  # noqa: E402


def converted(tmp_path: Path, architecture: str, dtype: str = "float32", end_of_turn: str | None = None) -> Path:
    target = tmp_path / f"{architecture}-{dtype}"
    target.mkdir()
    source = write_gguf(tmp_path / f"{architecture}.gguf", architecture)
    convert(source, target, dtype=dtype, chat_template="{{ messages }}", end_of_turn=end_of_turn)
    return target


def stored(gguf_path: Path) -> dict[str, np.ndarray]:
    """Tensors as the file has them, quantisation losses included."""
    with GgufFile(gguf_path) as file:
        return {t.name: np.concatenate(list(file.rows(t))).reshape(t.shape) for t in file.tensors}


@pytest.mark.parametrize(("part", "heads"), [("q", HEADS), ("k", KV_HEADS)])
def test_llama_rotary_rows_are_put_back(tmp_path: Path, part: str, heads: int) -> None:
    weights = safetensors.load_file(converted(tmp_path, "llama") / "model.safetensors")
    ours = weights[f"model.layers.0.self_attn.{part}_proj.weight"]
    rows, columns = ours.shape
    # llama.cpp's own permutation (convert_hf_to_gguf.py, LlamaModel.permute) must lead back to the file's rows.
    interleaved = ours.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    np.testing.assert_array_equal(interleaved, stored(tmp_path / "llama.gguf")[f"blk.0.attn_{part}.weight"])


def test_gemma_rows_stay_and_norms_lose_their_one(tmp_path: Path) -> None:
    weights = safetensors.load_file(converted(tmp_path, "gemma3") / "model.safetensors")
    before = stored(tmp_path / "gemma3.gguf")
    np.testing.assert_array_equal(weights["model.layers.0.self_attn.q_proj.weight"], before["blk.0.attn_q.weight"])
    for ours, theirs in {
        "model.norm": "output_norm",
        "model.layers.0.post_attention_layernorm": "blk.0.post_attention_norm",
        "model.layers.0.pre_feedforward_layernorm": "blk.0.ffn_norm",
        "model.layers.0.self_attn.q_norm": "blk.0.attn_q_norm",
    }.items():
        np.testing.assert_array_equal(weights[f"{ours}.weight"], before[f"{theirs}.weight"] - 1)


def test_half_precision_rounds_the_same_weights(tmp_path: Path) -> None:
    exact = safetensors.load_file(converted(tmp_path, "llama") / "model.safetensors")
    half = safetensors.load_file(converted(tmp_path, "llama", "float16") / "model.safetensors")
    assert exact.keys() == half.keys()
    for name, values in exact.items():
        np.testing.assert_array_equal(half[name], values.astype(np.float16))


def test_bfloat16_rounds_as_torch_does_for_every_exponent_and_tie() -> None:
    torch = pytest.importorskip("torch")
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    upper = upper[np.isfinite(upper.view(np.float32))]
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):  # below, on and above the tie
        values = (upper | np.uint32(lower)).view(np.float32)
        expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
        np.testing.assert_array_equal(bfloat16_bits(values), expected)


def test_bfloat16_file_is_read_back_by_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    exact = safetensors.load_file(converted(tmp_path, "gemma3") / "model.safetensors")
    rounded = load_file(converted(tmp_path, "gemma3", "bfloat16") / "model.safetensors")
    for name, values in exact.items():
        assert torch.equal(rounded[name], torch.from_numpy(values).to(torch.bfloat16)), name


def test_row_order_is_a_permutation_within_each_head() -> None:
    order = rotary_row_order(12, 2)
    assert order.tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


@pytest.mark.parametrize(
    "name", ["blk.0.ssm_conv.weight", "blk.x.attn_q.weight", "rope_freqs.weight", "output.weight", "weight"]
)
def test_unknown_tensor_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        hugging_face_name(name, "llama")


def test_unknown_tensor_stops_the_conversion(tmp_path: Path) -> None:
    tensors = random_tensors("llama") | {"blk.0.ffn_gate_inp.weight": np.zeros((4, 64), np.float32)}
    source = write_gguf(tmp_path / "moe.gguf", tensors=tensors)
    with pytest.raises(ModelError, match="ffn_gate_inp"):
        convert(source, tmp_path, dtype="float32", chat_template="")


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(ModelError, match="mamba"):
        model_config({"general.architecture": "mamba"}, "float32")


def test_configuration_says_what_the_file_says(tmp_path: Path) -> None:
    directory = converted(tmp_path, "gemma3", "bfloat16", end_of_turn="\n\n\n\n")
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert config["rms_norm_eps"] == 1e-5  # the file's float32 is 9.99999974e-06
    assert config["torch_dtype"] == "bfloat16"
    assert config["vocab_size"] == len(SENTENCEPIECE_TOKENS)
    assert config["layer_types"] == ["sliding_attention"]
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, SENTENCEPIECE_TOKENS.index("\n\n\n\n")]
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    assert (tokenizer["bos_token"], tokenizer["eos_token"], tokenizer["unk_token"]) == ("<bos>", "<eos>", "<unk>")
    assert tokenizer["chat_template"] == "{{ messages }}"


def test_tokenizers_encode_and_decode(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    bytes_level = Tokenizer.from_file(str(converted(tmp_path, "llama") / "tokenizer.json"))
    assert bytes_level.encode("ab a<|end|>").tokens == ["ab", "Ġa", "<|end|>"]
    pieces = Tokenizer.from_file(str(converted(tmp_path, "gemma3") / "tokenizer.json"))
    encoded = pieces.encode("abc a\n\n\n\nb")
    assert encoded.tokens == ["<bos>", "abc", "▁a", "\n\n\n\n", "b"]
    assert pieces.decode(encoded.ids, skip_special_tokens=True) == "abc a\n\n\n\nb"


def test_merges_follow_the_id_of_the_union() -> None:
    tokens = ["<s>", "a", "b", "c", "bc", "ab", "abc", "<0x0A>"]
    merges = implied_merges(tokens, [3, 1, 1, 1, 1, 1, 1, 6])
    assert merges == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]
