"""Small stand-ins for the embedded models: a GGUF file of a few kilobytes, and a catalogue record that names it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from agentinfer.models.catalogue import EmbeddedModel, PackagePart, find_model

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 64, 4, 2, 32, 96

BYTE_LEVEL_TOKENS = ["<|end|>", "a", "b", "c", "Ġ", "ab", "Ġa"]
SENTENCEPIECE_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n\n\n", "a", "b", "c", "▁", "ab", "▁a", "abc"]


def write_gguf(path: Path, architecture: str = "llama", *, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """One layer of fixed random weights: f32 norms, Q8_0 embeddings, Q4_1 (llama) or Q5_0 (gemma3) matrices."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    if architecture == "llama":
        writer.add_rope_dimension_count(HEAD_DIM)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(BYTE_LEVEL_TOKENS)
        writer.add_token_types([3, 1, 1, 1, 1, 1, 1])
        writer.add_token_merges(["a b", "Ġ a"])
        ids = (0, 0, 0, 0)
    else:
        writer.add_key_length(HEAD_DIM)
        writer.add_sliding_window(16)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(SENTENCEPIECE_TOKENS)
        writer.add_token_types([3, 3, 3, 3, 4, 1, 1, 1, 1, 1, 1, 1])
        writer.add_add_bos_token(True)
        ids = (2, 1, 3, 0)
    writer.add_bos_token_id(ids[0])
    writer.add_eos_token_id(ids[1])
    writer.add_unk_token_id(ids[2])
    writer.add_pad_token_id(ids[3])
    matrix_kind = GGMLQuantizationType.Q4_1 if architecture == "llama" else GGMLQuantizationType.Q5_0
    for name, values in (tensors or random_tensors(architecture)).items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
            continue
        kind = GGMLQuantizationType.Q8_0 if name == "token_embd.weight" else matrix_kind
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_tensors(architecture: str) -> dict[str, np.ndarray]:
    num_tokens = len(BYTE_LEVEL_TOKENS if architecture == "llama" else SENTENCEPIECE_TOKENS)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (num_tokens, HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "blk.0.ffn_gate": (FEED_FORWARD, HIDDEN),
        "blk.0.ffn_up": (FEED_FORWARD, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, FEED_FORWARD),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
    }
    if architecture == "gemma3":
        shapes |= {"blk.0.attn_q_norm": (HEAD_DIM,), "blk.0.attn_k_norm": (HEAD_DIM,)}
        shapes |= {"blk.0.post_attention_norm": (HIDDEN,), "blk.0.post_ffw_norm": (HIDDEN,)}
    rng = np.random.default_rng(7)
    return {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def record_for(content: bytes, parts: tuple[PackagePart, ...] = ()) -> EmbeddedModel:
    """A catalogue record named `tiny` whose GGUF file is `content`."""
    return replace(
        find_model("smollm2-135m"),
        name="tiny",
        parts=parts,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
