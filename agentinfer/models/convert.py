"""One GGUF file -> a Hugging Face model directory: weights, configuration, tokenizer, chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentinfer.errors import ModelError
from agentinfer.models.gguf import GgufFile
from agentinfer.models.tokenizer import build_tokenizer
from agentinfer.models.weights import write_weights

# Gemma 3: every sixth layer attends to everything; the others have a window and their own rotary base. The file has the
# window's width only. Source: Gemma 3 technical report, section 2.
_GEMMA3_GLOBAL_EVERY = 6
_GEMMA3_LOCAL_ROPE_BASE = 10_000.0


# The keys below are transformers 4's, which 5 and SGLang read as well. Without a version transformers takes any large
# vocabulary for one of Mistral's faulty ones and warns.
_TRANSFORMERS_VERSION = "4.57.0"


def convert(source: Path, target: Path, *, dtype: str, chat_template: str, end_of_turn: str | None = None) -> None:
    """Writes the model of the GGUF file `source` into the existing, empty directory `target`.

    `end_of_turn`, a vocabulary entry, ends a reply besides the file's own end token.
    Raises `ModelError` when the file is damaged or of an architecture this converter does not know. On failure `target`
    is left as it is, half written: whoever made it removes it.
    """
    with GgufFile(source) as gguf:
        config = model_config(gguf.metadata, dtype)
        _write_json(target / "config.json", config)
        _write_json(target / "generation_config.json", generation_config(gguf.metadata, end_of_turn))
        _write_json(target / "tokenizer_config.json", tokenizer_config(gguf.metadata, chat_template))
        build_tokenizer(gguf.metadata).save(str(target / "tokenizer.json"), pretty=False)
        write_weights(gguf, target / "model.safetensors", dtype)


def model_config(metadata: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The contents of config.json. Raises `ModelError` for an unknown architecture."""
    architecture = metadata["general.architecture"]
    if architecture not in ("llama", "gemma3"):
        raise ModelError(
            f"architecture {architecture!r} is not one this converter knows (llama, gemma3); "
            "serve a Hugging Face checkpoint of that model instead"
        )
    own = {key.partition(".")[2]: value for key, value in metadata.items() if key.startswith(architecture + ".")}
    shared = {
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own["attention.head_count_kv"],
        # Stored as float32: 9.99999974e-06 is meant to be 1e-05.
        "rms_norm_eps": float(f"{own['attention.layer_norm_rms_epsilon']:.6g}"),
        "max_position_embeddings": own["context_length"],
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "rope_theta": float(own["rope.freq_base"]),
        "rope_scaling": None,
        "tie_word_embeddings": True,  # a file with an output matrix of its own is refused with that tensor's name
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": dtype,
        "transformers_version": _TRANSFORMERS_VERSION,
    }
    if architecture == "llama":
        return shared | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "mlp_bias": False,
            "head_dim": own["rope.dimension_count"],
        }
    return shared | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": own["attention.key_length"],
        "query_pre_attn_scalar": own["attention.key_length"],
        "rope_local_base_freq": _GEMMA3_LOCAL_ROPE_BASE,
        "sliding_window": own["attention.sliding_window"],
        "sliding_window_pattern": _GEMMA3_GLOBAL_EVERY,
        "layer_types": [
            "full_attention" if (layer + 1) % _GEMMA3_GLOBAL_EVERY == 0 else "sliding_attention"
            for layer in range(own["block_count"])
        ],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def generation_config(metadata: Mapping[str, Any], end_of_turn: str | None) -> dict[str, Any]:
    """The contents of generation_config.json: which tokens end a reply. Engines stop at any of the list."""
    ends = [metadata["tokenizer.ggml.eos_token_id"]]
    if end_of_turn is not None:
        ends.append(metadata["tokenizer.ggml.tokens"].index(end_of_turn))
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": ends,
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "transformers_version": _TRANSFORMERS_VERSION,
    }


def tokenizer_config(metadata: Mapping[str, Any], chat_template: str) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    tokens = metadata["tokenizer.ggml.tokens"]
    architecture = metadata["general.architecture"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": metadata[f"{architecture}.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
