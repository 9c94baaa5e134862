"""Sparse ranking: BM25 of each result against the query, over the results of this one search."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentinfer.compress.search.terms import terms


def sparse_scores(query: str, texts: Sequence[str]) -> list[float]:
    """BM25 (Lucene's form, k1 1.5, b 0.75) of each text; 0.0 where it shares no term with the query.

    How rare a term is gets counted among `texts` alone: a search engine already chose them by the query's words, so a
    word that all of them hold tells nothing.
    """
    # Imported here: a server that ranks nothing does not wait for it at start-up.
    import bm25s

    wanted = _content_terms(query, frozenset(bm25s.stopwords.STOPWORDS_EN_PLUS))
    documents = [terms(text) for text in texts]
    if not wanted or not any(documents):
        return [0.0] * len(texts)
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene", backend="numpy")
    index.index(documents, show_progress=False)
    scores = [float(score) for score in index.get_scores(wanted)]
    assert all(math.isfinite(score) and score >= 0.0 for score in scores)
    return scores


def _content_terms(query: str, stop_words: frozenset[str]) -> list[str]:
    """Each term once. Stop words count only where the query is nothing else: among ten snippets a "how" is rare."""
    every = dict.fromkeys(terms(query))
    return [term for term in every if term not in stop_words] or list(every)
