"""A tokenizer's fingerprint: under another tokenizer, stored token ids mean something else."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agentinfer.spec_sam.store.errors import StoreError

# The first that exists decides; each defines the ids of all but later-added tokens.
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json", "vocab.txt")


def tokenizer_fingerprint(directory: Path | str) -> str:
    """Of the tokenizer in a model's folder (Hugging Face layout): its vocabulary file's name and SHA-256.

    Raises StoreError when there is none.
    """
    for name in _VOCABULARY_FILES:
        path = Path(directory) / name
        if path.is_file():
            return f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}"
    raise StoreError(f"{directory}: no tokenizer there; expected one of {', '.join(_VOCABULARY_FILES)}")
