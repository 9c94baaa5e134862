"""A search function wrapped: the very results come back, fewer of them."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from agentinfer.compress.search import Ranker, SearchInputError, SearchResult, SearchSettings, ranked

FOUND = [
    {"title": "Cheap pizza", "href": "https://a.example", "body": "Order online."},
    {"title": "Height of the Eiffel Tower", "href": "https://b.example", "body": "330 metres", "extra": [1]},
    {"title": "Eiffel Tower tickets", "href": "https://c.example", "body": "Skip the line."},
    {"title": "Height of the Eiffel Tower", "href": "https://d.example", "body": "330 metres"},
]
ONE = Ranker(SearchSettings(min_keep=1))


def search(query: str, limit: int = 10) -> list[dict[str, Any]]:
    """Finds."""
    return FOUND[:limit]


async def search_later(query: str, limit: int = 10) -> list[dict[str, Any]]:
    await asyncio.sleep(0)
    return FOUND[:limit]


class SearchTool:
    async def __call__(self, query: str) -> list[dict[str, Any]]:
        return FOUND


class Last:
    """Prefers what came last; says in which thread it was asked."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    async def score(self, query: str, texts: Sequence[str]) -> list[float]:
        self.threads.append(threading.get_ident())
        return [0.0] * (len(texts) - 1) + [1.0]


def test_kept_results_are_the_same_objects_in_the_same_order() -> None:
    kept = ranked(search, ONE)("Eiffel Tower height")
    assert [id(each) for each in kept] == [id(FOUND[1]), id(FOUND[2])]
    assert search("Eiffel Tower height") == FOUND


def test_the_wrapper_keeps_name_and_arguments() -> None:
    wrapped = ranked(search, ONE)
    assert (wrapped.__name__, wrapped.__doc__) == ("search", "Finds.")
    assert wrapped(query="pizza", limit=1) == FOUND[:1]


@pytest.mark.parametrize(
    "function",
    [search_later, SearchTool(), functools.partial(search_later, limit=4)],
    ids=["async", "object", "partial"],
)
def test_async_functions_stay_async(function: Any) -> None:
    assert asyncio.run(ranked(function, ONE)("Eiffel Tower height")) == FOUND[1:3]


def test_a_model_ranks_in_async_and_in_plain_functions_within_a_running_loop_too() -> None:
    scorer = Last()
    ranker = Ranker(SearchSettings(min_keep=1), scorer)
    assert ranked(search, ranker)("Eiffel") == [FOUND[2]]  # the fourth repeats the second

    async def within_a_loop() -> list[Any]:
        return ranked(search, ranker)("Eiffel")

    assert asyncio.run(within_a_loop()) == [FOUND[2]]
    assert asyncio.run(ranked(search_later, ranker)("Eiffel")) == [FOUND[2]]
    assert threading.get_ident() not in scorer.threads[:2]


def test_other_shapes_are_read_by_a_function() -> None:
    lines = ["pizza | order", "tower | height 330"]

    def read(raw: str, place: int) -> SearchResult:
        title, _, snippet = raw.partition(" | ")
        return SearchResult(place, title, snippet)

    assert ranked(lambda query: lines, ONE, read)("tower height") == lines[1:]


def test_what_cannot_be_read_is_an_error_not_an_unranked_list() -> None:
    with pytest.raises(SearchInputError, match="results: expected a list of results from the search function"):
        ranked(lambda query: {"results": FOUND})("x")
    with pytest.raises(SearchInputError, match=r"results\[0\]: expected a title or a snippet, got .* heading"):
        ranked(lambda query: [{"heading": "h"}])("x")
    with pytest.raises(SearchInputError, match="query: expected text"):
        ranked(lambda: FOUND)()
