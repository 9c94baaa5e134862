"""What a model's files say about the memory it will take, before anything loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Of the first kind that is there; a checkpoint may have its weights in two forms.
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")

# The number of experts of a layer, as different architectures call it.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

_ITEM_BYTES = {"float32": 4, "float": 4, "float64": 8, "bfloat16": 2, "float16": 2, "half": 2}


def model_folder(path: str, environ: Mapping[str, str]) -> Path | None:
    """Where the model `path` (a folder, or a name on the hub) lies on this disk; None where it does not."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    home = Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(environ.get("HF_HUB_CACHE") or home / "hub")
    repository = hub / f"models--{path.replace('/', '--')}"
    try:
        snapshot = repository / "snapshots" / (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return snapshot if snapshot.is_dir() else None


def weights_bytes(folder: Path, dtype: str | None) -> int | None:
    """Bytes that the weights take once loaded with ``--dtype dtype``; from the files, or from the shape without files.

    None where neither says. A quantization at load time makes it less, so this is an upper bound.
    """
    config = _config(folder)
    stored = _stored_item_bytes(config)
    # SGLang loads 32-bit weights as 16 bits unless it is asked for more.
    loaded = min(stored, 2) if dtype in (None, "auto") else _ITEM_BYTES.get(str(dtype), stored)
    for pattern in _WEIGHT_FILES:
        size = sum(file.stat().st_size for file in folder.glob(pattern))
        if size:
            is_plain = pattern != "*.gguf" and "quantization_config" not in config
            return size * loaded // stored if is_plain else size
    parameters = _parameters(_text_config(config))
    return None if parameters is None else parameters * loaded


def kv_bytes_a_token(folder: Path, dtype: str | None, kv_cache_dtype: str | None) -> int | None:
    """Bytes of keys and values a token takes over all layers, on however many GPUs; None where it cannot be told."""
    config = _text_config(_config(folder))
    item_bytes = 1 if "fp8" in str(kv_cache_dtype) else 4 if dtype in ("float", "float32") else 2
    try:
        layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        if config.get("kv_lora_rank"):
            return layers * (int(config["kv_lora_rank"]) + int(config["qk_rope_head_dim"])) * item_bytes
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    except (KeyError, TypeError, ValueError):
        return None
    return layers * kv_heads * head_dim * 2 * item_bytes


def _parameters(config: Mapping[str, Any]) -> int | None:
    """Of a decoder with gated feed-forward layers, dense or of experts, from its shape."""
    try:
        layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
        heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or hidden // heads)
        kv_heads = int(config.get("num_key_value_heads") or heads)
        experts = int(
            config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts") or 1
        )
        width = int((config.get("moe_intermediate_size") if experts > 1 else None) or config["intermediate_size"])
        vocabulary = int(config["vocab_size"])
    except (KeyError, TypeError, ValueError):
        return None
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return layers * (attention + 3 * hidden * width * experts) + embeddings


def _config(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _stored_item_bytes(config: Mapping[str, Any]) -> int:
    names = (config.get("dtype"), config.get("torch_dtype"), _text_config(config).get("torch_dtype"))
    return next((_ITEM_BYTES[str(name)] for name in names if str(name) in _ITEM_BYTES), 2)
