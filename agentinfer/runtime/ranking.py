"""`POST /agentinfer/rank`: which of a search's results are worth an agent's tokens, judged by words or by the engine.

Agents' turns come first: results and characters are bounded, and the engine judges in small batches of one ranking at
a time.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter, HTTPException, Request

from agentinfer.clock import SystemClock
from agentinfer.compress.search import Ranking, SearchInputError, SearchSettings, rank, read_results
from agentinfer.compress.search.results import described
from agentinfer.errors import ConfigError
from agentinfer.metrics import RankingMetrics
from agentinfer.runtime.scoring import EngineScorer, engine_labels, served_manager

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

MAX_RESULTS = 200
MAX_RESULT_CHARS = 8_000
MAX_QUERY_CHARS = 2_000
MAX_TIMEOUT_S = 120.0
DEFAULT_TIMEOUT_S = 30.0

# What the model reads is the server's to bound, not a request's.
_SETTINGS = frozenset(("threshold", "min_keep", "top_k"))
_FIELDS = _SETTINGS | {"query", "results", "model", "timeout_s"}


def ranking_routes(manager: Callable[[], Any] | None = None, registry: CollectorRegistry | None = None) -> APIRouter:
    """The route over SGLang's tokenizer manager, by default that of the server in this process.

    `registry`: where its metrics live, by default in the client library's own.
    """
    tokenizer_manager = manager or served_manager
    clock = SystemClock()
    engine = EngineScorer(tokenizer_manager, clock)
    built: list[RankingMetrics] = []

    @contextlib.asynccontextmanager
    async def said_at_start(app: Any) -> AsyncIterator[None]:
        # Not before: the server sets the folder of multi-process metrics while it is set up.
        built[:] = [RankingMetrics(registry)]
        try:
            engine_labels(tokenizer_manager())
        except Exception as error:
            # Turns are served all the same.
            logger.error("POST /agentinfer/rank cannot use the served model, it ranks by words alone: %s", error)
        yield

    router = APIRouter(prefix="/agentinfer", tags=["agentinfer"], lifespan=said_at_start)

    @router.post("/rank")
    async def rank_results(request: Request) -> dict[str, Any]:
        """Which results to keep, in which order, and why; see agentinfer/compress/search/README.md."""
        raw = await request.body()
        begun_s = clock.monotonic_s()
        try:
            ranking = await _rank(_read(raw), engine)
        except HTTPException:
            built[0].refused()
            raise
        except (SearchInputError, ConfigError) as error:
            built[0].refused()
            raise HTTPException(422, str(error)) from None
        took_s = clock.monotonic_s() - begun_s
        built[0].ranked(_judge(ranking), len(ranking.verdicts), len(ranking.kept), took_s)
        return ranking.as_dict()

    return router


def _judge(ranking: Ranking) -> str:
    if ranking.is_by_model:
        return "model"
    return "words" if ranking.model_failure is None else "fallback"


def _read(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the request body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise HTTPException(400, f"the request body must be a JSON object, got {described(body)}")
    return body


async def _rank(body: dict[str, Any], engine: EngineScorer) -> Ranking:
    unknown = sorted(set(body) - _FIELDS)
    if unknown:
        raise SearchInputError(unknown[0], "a field with this name", f"only {', '.join(sorted(_FIELDS))}")
    query = body.get("query")
    if not isinstance(query, str) or not query.strip() or len(query) > MAX_QUERY_CHARS:
        seen = f"{len(query)} characters" if isinstance(query, str) and query.strip() else described(query)
        raise SearchInputError("query", seen, f"text of at most {MAX_QUERY_CHARS} characters")
    by_model = body.get("model", False)
    if not isinstance(by_model, bool):
        raise SearchInputError("model", described(by_model), "true or false: the served model judges, or only words do")
    timeout_s = body.get("timeout_s", DEFAULT_TIMEOUT_S)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise SearchInputError("timeout_s", described(timeout_s), f"seconds above 0 and up to {MAX_TIMEOUT_S:g}")
    settings = SearchSettings(**{name: body[name] for name in _SETTINGS if name in body})
    results = read_results(body.get("results"), MAX_RESULTS, MAX_RESULT_CHARS)
    return await rank(query, results, settings, engine.within(timeout_s) if by_model else None)
