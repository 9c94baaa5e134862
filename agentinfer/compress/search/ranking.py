"""Ranking: scores to an order, an order to what is kept, with the reason for each result.

    share_i = s_i / max(s)        s: P(yes) of the model where it scored, else BM25
    kept:   share_i >= threshold, at most top_k, at least min_keep

A share of the best, not a score of its own, because BM25 has no scale and a small model's P(yes) leans to one answer
for a whole list. `max(s)` leaves duplicates out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from agentinfer.compress.search.duplicates import repeated
from agentinfer.compress.search.results import SearchInputError, SearchResult, described
from agentinfer.compress.search.scoring import Scorer, checked
from agentinfer.compress.search.settings import DEFAULTS, SearchSettings
from agentinfer.compress.search.sparse import sparse_scores
from agentinfer.compress.search.tokens import Savings, savings

logger = logging.getLogger(__name__)

Reason = Literal[
    "relevant",  # kept: its share reaches the threshold
    "no_evidence",  # kept: no result has any score, so none is worse than another
    "minimum",  # kept: below the threshold, but among the best `min_keep`
    "below_threshold",
    "beyond_top_k",
    "not_scored",  # dropped: the model saw only the `max_scored` best by words
    "duplicate",
]
_KEPT: frozenset[Reason] = frozenset(("relevant", "no_evidence", "minimum"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ranking found of one result. `order_id` is its place in the list that came in, `id` the caller's own.

    `share`: of the best score; None for duplicates, and for what the model did not see. `duplicate_of`: the order id of
    the result that it repeats.
    """

    order_id: int
    id: str | int
    sparse_score: float
    model_score: float | None
    share: float | None
    is_kept: bool
    reason: Reason
    duplicate_of: int | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """`verdicts` in the order in which the results came, `order` their order ids best first, duplicates last.

    `is_by_model`: whether the model's scores decided. `model_failure`: why they did not although a model was asked.
    """

    verdicts: tuple[Verdict, ...]
    order: tuple[int, ...]
    savings: Savings
    is_by_model: bool
    model_failure: str | None

    @property
    def kept(self) -> tuple[int, ...]:
        """Order ids of what is kept, in the order in which the results came."""
        return tuple(verdict.order_id for verdict in self.verdicts if verdict.is_kept)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; see the README."""
        return {
            "kept": list(self.kept),
            "order": list(self.order),
            "results": [asdict(verdict) for verdict in self.verdicts],
            "savings": asdict(self.savings),
            "is_by_model": self.is_by_model,
            "model_failure": self.model_failure,
        }


async def rank(
    query: str, results: Sequence[SearchResult], settings: SearchSettings = DEFAULTS, scorer: Scorer | None = None
) -> Ranking:
    """Rank `results` against `query`, by the model behind `scorer` where there is one.

    A scorer that fails in any way leaves the sparse ranking, and `model_failure` says why. Raises SearchInputError for
    a query without text.
    """
    # In threads: an event loop that also streams answers is not held up by long lists.
    sparse = await asyncio.to_thread(sparse_ranking_scores, query, results)
    model: dict[int, float] | None = None
    failure: str | None = None
    if scorer is not None and results:
        chosen = _worth_scoring(results, sparse, settings.max_scored)
        texts = [results[order_id].text[: settings.max_scored_chars] for order_id in chosen]
        try:
            model = dict(zip(chosen, checked(await scorer.score(query, texts), len(texts)), strict=True))
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            logger.warning("search results are ranked by words alone, the model failed: %s", failure)
    return await asyncio.to_thread(decide, results, sparse, settings, model, failure)


def rank_sparse(query: str, results: Sequence[SearchResult], settings: SearchSettings = DEFAULTS) -> Ranking:
    """Rank by words alone; needs no model and no event loop. Raises SearchInputError for a query without text."""
    return decide(results, sparse_ranking_scores(query, results), settings)


def sparse_ranking_scores(query: str, results: Sequence[SearchResult]) -> list[float]:
    """BM25 of each result. Raises SearchInputError for a query without text."""
    if not isinstance(query, str) or not query.strip():
        raise SearchInputError("query", described(query), "text")
    return sparse_scores(query, [result.text for result in results])


def decide(
    results: Sequence[SearchResult],
    sparse: Sequence[float],
    settings: SearchSettings,
    model: dict[int, float] | None = None,
    model_failure: str | None = None,
) -> Ranking:
    """Order and keep; see the module's docstring. `model` has scores by order id, for all or some of the results."""
    repeats = repeated(results)
    originals = [order_id for order_id, repeats_id in enumerate(repeats) if repeats_id is None]
    scores: dict[int, float] = {order_id: sparse[order_id] for order_id in originals}
    if model is not None:
        scores = {order_id: model[order_id] for order_id in originals if order_id in model}
    # Equal scores stay in the order of the search engine, which knew more of the pages than their snippets.
    ranked = sorted(originals, key=lambda each: (each not in scores, -scores.get(each, 0.0), -sparse[each], each))
    best = max(scores.values(), default=0.0)
    reasons: dict[int, Reason] = {}
    for rank_place, order_id in enumerate(ranked):
        reasons[order_id] = _reason(rank_place, scores.get(order_id), best, settings)
    verdicts = tuple(
        Verdict(
            order_id=order_id,
            id=result.id,
            sparse_score=sparse[order_id],
            model_score=None if model is None else model.get(order_id),
            share=scores[order_id] / best if best > 0.0 and order_id in scores else None,
            is_kept=reasons.get(order_id) in _KEPT,
            reason=reasons.get(order_id, "duplicate"),
            duplicate_of=repeats[order_id],
        )
        for order_id, result in enumerate(results)
    )
    return Ranking(
        verdicts=verdicts,
        order=(*ranked, *(order_id for order_id in range(len(results)) if repeats[order_id] is not None)),
        savings=savings(results, (verdict.order_id for verdict in verdicts if verdict.is_kept)),
        is_by_model=model is not None,
        model_failure=model_failure,
    )


def _reason(rank_place: int, score: float | None, best: float, settings: SearchSettings) -> Reason:
    if settings.top_k is not None and rank_place >= settings.top_k:
        return "beyond_top_k"
    if best <= 0.0:
        return "no_evidence"
    if score is not None and score / best >= settings.threshold:
        return "relevant"
    if rank_place < settings.min_keep:
        return "minimum"
    return "not_scored" if score is None else "below_threshold"


def _worth_scoring(results: Sequence[SearchResult], sparse: Sequence[float], most: int) -> list[int]:
    originals = [order_id for order_id, repeats_id in enumerate(repeated(results)) if repeats_id is None]
    best_first = sorted(originals, key=lambda order_id: (-sparse[order_id], order_id))
    return sorted(best_first[:most])
