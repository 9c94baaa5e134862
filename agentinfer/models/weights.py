"""GGUF tensors -> one safetensors file, streamed a few rows at a time: no torch, and memory stays flat.

Two things differ between llama.cpp's files and Hugging Face's: llama.cpp interleaves the rows of q and k for its rotary
embedding, and it stores Gemma's norm weights as 1 + w. Both are undone here.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from agentinfer.errors import ModelError
from agentinfer.models.gguf import GgufFile, Rows, TensorInfo

# dtype -> (safetensors' name, bytes an element)
_ENCODINGS = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}

_COMMON = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
_LAYER_PARTS = {
    "llama": {**_COMMON, "ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        **_COMMON,
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
_TOP_LEVEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def write_weights(source: GgufFile, path: Path, dtype: str) -> None:
    """Writes every tensor of `source` under its Hugging Face name, rounded to `dtype` (one of the catalogue's).

    Raises `ModelError` for an architecture or tensor this converter does not know.
    """
    architecture = source.metadata["general.architecture"]
    with path.open("wb") as file:
        file.write(_header(source, architecture, dtype))
        for tensor in source.tensors:
            _write_tensor(source, tensor, architecture, dtype, file)


def hugging_face_name(gguf_name: str, architecture: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``. Raises `ModelError` when unknown."""
    base, _, suffix = gguf_name.rpartition(".")
    try:
        if base in _TOP_LEVEL:
            return f"{_TOP_LEVEL[base]}.{suffix}"
        block, layer, part = base.split(".")
        if block == "blk":
            return f"model.layers.{int(layer)}.{_LAYER_PARTS[architecture][part]}.{suffix}"
    except (KeyError, ValueError):
        pass
    raise ModelError(
        f"tensor {gguf_name!r} of architecture {architecture!r} is not one this converter knows "
        f"(architectures {sorted(_LAYER_PARTS)}); serve a Hugging Face checkpoint of that model instead"
    )


def bfloat16_bits(values: Rows) -> npt.NDArray[np.uint16]:
    """The bfloat16 nearest to each finite float32, ties to even, as raw bits (numpy has no such type)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def rotary_row_order(num_rows: int, num_heads: int) -> npt.NDArray[np.intp]:
    """Row numbers that turn llama.cpp's interleaved rotary pairs back into the two halves Hugging Face keeps apart."""
    pairs = np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2)
    return pairs.swapaxes(1, 2).ravel()


def _header(source: GgufFile, architecture: str, dtype: str) -> bytes:
    type_name, element_bytes = _ENCODINGS[dtype]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in source.tensors:
        start, end = end, end + int(np.prod(tensor.shape, dtype=np.int64)) * element_bytes
        name = hugging_face_name(tensor.name, architecture)
        entries[name] = {"dtype": type_name, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data section starts aligned
    return len(text).to_bytes(8, "little") + text


def _write_tensor(source: GgufFile, tensor: TensorInfo, architecture: str, dtype: str, file: BinaryIO) -> None:
    part = tensor.name.split(".")[-2]
    order = None
    if architecture == "llama" and part in ("attn_q", "attn_k"):
        heads = source.metadata[f"llama.attention.head_count{'' if part == 'attn_q' else '_kv'}"]
        order = rotary_row_order(tensor.num_rows, heads)
    stores_one_plus = architecture == "gemma3" and part.endswith("norm")
    for block in source.rows(tensor, order):
        values = block - np.float32(1.0) if stores_one_plus else block
        if dtype == "bfloat16":
            file.write(bfloat16_bits(values).tobytes())
        else:
            file.write(values.astype(dtype).tobytes())
