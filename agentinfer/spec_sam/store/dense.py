"""Dense retrieval behind the same interface: text embeddings, where `sentence-transformers` is installed.

It finds paraphrases that sparse retrieval misses, at the price of a model run for each stored turn and each query.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt

from agentinfer.spec_sam.store.errors import StoreError
from agentinfer.spec_sam.store.payloads import Tokens
from agentinfer.spec_sam.store.retrieval import Hit

Vectors = npt.NDArray[np.float32]
Embed = Callable[[list[str]], Vectors]
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


class DenseRetriever:
    """Cosine similarity of embeddings, exact, in one matrix of float32. Those not above 0 are no hits."""

    def __init__(self, embed: Embed, decode: Callable[[Tokens], str], key_tokens: int = 256) -> None:
        """`embed` gives a row a text, of whatever length; `decode` is the tokenizer's."""
        self.key_tokens = key_tokens
        self._embed = embed
        self._decode = decode
        # Replaced as a whole, so that a search sees ids and rows that belong together.
        self._now: tuple[npt.NDArray[np.int64], Vectors] = (np.empty(0, np.int64), np.empty((0, 0), np.float32))

    def add(self, context_ids: Sequence[int], keys: Sequence[Tokens]) -> None:
        if not context_ids:
            return
        ids, rows = self._now
        new = self._vectors([key[-self.key_tokens :] for key in keys])
        rows = np.concatenate([rows, new]) if len(rows) else new
        self._now = (np.concatenate([ids, np.array(context_ids, np.int64)]), rows)

    def remove(self, context_ids: Collection[int]) -> None:
        ids, rows = self._now
        is_kept = ~np.isin(ids, list(context_ids))
        self._now = (ids[is_kept], rows[is_kept])

    def search(self, query: Tokens, k: int, exclude: Collection[int]) -> list[Hit]:
        ids, rows = self._now
        if not len(ids) or not len(query) or k < 1:
            return []
        scores = rows @ self._vectors([query[-self.key_tokens :]])[0]
        if exclude:
            scores[np.isin(ids, list(exclude))] = 0
        order = np.lexsort((-ids, -scores))[:k]
        return [Hit(int(ids[i]), min(1.0, float(scores[i]))) for i in order if scores[i] > 0]

    def memory_bytes(self) -> int:
        ids, rows = self._now
        return ids.nbytes + rows.nbytes

    def check_integrity(self, context_ids: Collection[int]) -> None:
        ids, rows = self._now
        assert sorted(ids.tolist()) == sorted(context_ids), f"embedded {sorted(ids.tolist())}"
        assert len(rows) == len(ids), f"{len(rows)} rows of {len(ids)} contexts"

    def _vectors(self, keys: list[Tokens]) -> Vectors:
        found = np.asarray(self._embed([self._decode(key) for key in keys]), np.float32)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        unit: Vectors = found / np.maximum(lengths, np.float32(1e-12))
        return unit


def sentence_transformers(model: str = DEFAULT_MODEL, device: str = "cpu") -> Embed:
    """The embedding function of a model of that package. Raises StoreError where package or model is missing."""
    try:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        raise StoreError(
            "dense retrieval was asked for, and sentence-transformers is not installed: pip install "
            "sentence-transformers, or leave retrieval sparse, which needs nothing"
        ) from None
    try:
        loaded = SentenceTransformer(model, device=device)
    except (OSError, ValueError) as error:
        raise StoreError(f"embedding model {model!r} cannot be loaded: {error}. Name its folder") from error

    def embed(texts: list[str]) -> Vectors:
        return np.asarray(loaded.encode(texts, convert_to_numpy=True, show_progress_bar=False), np.float32)

    return embed
