"""GGUF vocabulary -> a `tokenizers` object that gives the same ids as the model's original tokenizer.

Two kinds occur: byte-level BPE with its merges in the file (`gpt2`), and SentencePiece BPE (`llama`), whose merges are
implied by the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import (  # type: ignore[import-untyped]
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from agentinfer.errors import ModelError

# Token types, llama.cpp `llama_token_type`.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer described by a GGUF file's `tokenizer.ggml.*` metadata. Raises `ModelError` for another kind."""
    kind = (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"])
    if kind == ("gpt2", "smollm"):
        tokenizer = _byte_level_bpe(metadata)
    elif kind == ("llama", "default"):
        tokenizer = _sentencepiece_bpe(metadata)
    else:
        raise ModelError(
            f"tokenizer kind {kind} is not one this converter knows (gpt2/smollm, llama/default); "
            "serve a Hugging Face checkpoint of that model instead"
        )
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    typed = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in typed if kind == CONTROL]
    )
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t, kind in typed if kind == USER_DEFINED])
    return tokenizer


def implied_merges(tokens: list[str], types: list[int]) -> list[tuple[str, str]]:
    """A SentencePiece BPE vocabulary's merges, most wanted first.

    SentencePiece joins the neighbouring pair whose union has the best score. In a BPE vocabulary scores fall with the
    id, so the union's id is the rank. All splits of one piece share that rank; among them the parts' ids decide.
    """
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for token, kind in zip(tokens, types, strict=True):
        if kind != NORMAL or len(token) < 2:
            continue
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [split for split in splits if split[0] in ids and split[1] in ids]
        merges += sorted(known, key=lambda split: (ids[split[0]], ids[split[1]]))
    return merges


def _byte_level_bpe(metadata: Mapping[str, Any]) -> Tokenizer:
    merges = [_pair(line) for line in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(metadata), merges=merges, fuse_unk=False))
    # llama.cpp's "smollm": digits one by one, then GPT-2's pattern.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(metadata: Mapping[str, Any]) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = implied_merges(tokens, metadata["tokenizer.ggml.token_type"])
    unknown = tokens[metadata["tokenizer.ggml.unknown_token_id"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=_vocabulary(metadata), merges=merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # Spaces are gone after the normalizer, so this splits nothing; transformers expects a pre-tokenizer to be there.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if metadata.get("tokenizer.ggml.add_bos_token"):
        bos_id = metadata["tokenizer.ggml.bos_token_id"]
        bos = tokens[bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
        )
    return tokenizer


def _vocabulary(metadata: Mapping[str, Any]) -> dict[str, int]:
    return {token: token_id for token_id, token in enumerate(metadata["tokenizer.ggml.tokens"])}


def _pair(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    return left, right
