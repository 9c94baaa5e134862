"""A search tool that returns only what is worth reading: any search function, wrapped."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from agentinfer.compress.search.ranking import Ranking, rank, rank_sparse
from agentinfer.compress.search.results import SearchInputError, SearchResult, described, read_result
from agentinfer.compress.search.scoring import Scorer
from agentinfer.compress.search.settings import DEFAULTS, SearchSettings


@dataclass(frozen=True, slots=True)
class Ranker:
    """Settings and a model, if any, to rank every search with."""

    settings: SearchSettings = DEFAULTS
    scorer: Scorer | None = None

    async def rank(self, query: str, results: Sequence[SearchResult]) -> Ranking:
        """See `ranking.rank`."""
        return await rank(query, results, self.settings, self.scorer)

    def rank_now(self, query: str, results: Sequence[SearchResult]) -> Ranking:
        """The same for callers without an event loop. The model, if any, is asked from a thread of its own."""
        if self.scorer is None:
            return rank_sparse(query, results, self.settings)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="agentinfer-rank") as thread:
            return thread.submit(lambda: asyncio.run(self.rank(query, results))).result()


def ranked(
    search: Callable[..., Any], ranker: Ranker | None = None, read: Callable[[Any, int], SearchResult] = read_result
) -> Callable[..., Any]:
    """`search`, whose first argument is the query, returning a list of the results that `ranker` keeps.

    The very objects come back, in the order in which `search` gave them. Async where `search` is. `read(result, place)`
    takes a result apart; the usual one knows mappings with the common names. Raises SearchInputError where it cannot.
    """
    ranker = ranker or Ranker()
    if _is_async(search):

        @functools.wraps(search)
        async def search_async(*args: Any, **kwargs: Any) -> list[Any]:
            found = _listed(await _awaitable(search(*args, **kwargs)))
            ranking = await ranker.rank(_query(args, kwargs), _read_all(found, read))
            return [found[order_id] for order_id in ranking.kept]

        return search_async

    @functools.wraps(search)
    def search_now(*args: Any, **kwargs: Any) -> list[Any]:
        found = _listed(search(*args, **kwargs))
        ranking = ranker.rank_now(_query(args, kwargs), _read_all(found, read))
        return [found[order_id] for order_id in ranking.kept]

    return search_now


def _is_async(search: Callable[..., Any]) -> bool:
    # An object may have an async `__call__`, and a partial may hold an async function.
    while isinstance(search, functools.partial):
        search = search.func
    return inspect.iscoroutinefunction(search) or inspect.iscoroutinefunction(getattr(search, "__call__", None))  # noqa: B004


def _awaitable(value: Any) -> Awaitable[Any]:
    awaitable: Awaitable[Any] = value
    return awaitable


def _listed(found: object) -> list[Any]:
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise SearchInputError("results", described(found), "a list of results from the search function")
    return list(found)


def _read_all(found: list[Any], read: Callable[[Any, int], SearchResult]) -> list[SearchResult]:
    return [read(each, order_id) for order_id, each in enumerate(found)]


def _query(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    query: str = args[0] if args else kwargs.get("query")  # type: ignore[assignment]
    return query
