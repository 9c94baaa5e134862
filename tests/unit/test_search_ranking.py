"""Search compression: what is read of results, how they rank by words, what is kept and why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentinfer.compress.search import (
    Ranking,
    ScorerError,
    SearchInputError,
    SearchResult,
    SearchSettings,
    rank,
    rank_sparse,
    read_results,
)
from agentinfer.compress.search.duplicates import page
from agentinfer.compress.search.ranking import Reason, decide
from agentinfer.compress.search.terms import terms
from agentinfer.compress.search.tokens import estimated_tokens
from agentinfer.errors import ConfigError

ONE = SearchSettings(min_keep=1)


class Scores:
    """A scorer that gives what it was told, and remembers what it was asked."""

    def __init__(self, *scores: float, error: Exception | None = None) -> None:
        self.scores = list(scores)
        self.error = error
        self.asked: list[tuple[str, list[str]]] = []

    async def score(self, query: str, texts: Sequence[str]) -> list[float]:
        self.asked.append((query, list(texts)))
        if self.error is not None:
            raise self.error
        return self.scores


def results(*texts: str, urls: bool = False) -> list[SearchResult]:
    return [
        SearchResult(f"id-{place}", text, "", f"https://x.example/{place}" if urls else "")
        for place, text in enumerate(texts)
    ]


def by_model(scorer: Scores, given: list[SearchResult], settings: SearchSettings = ONE) -> Ranking:
    return asyncio.run(rank("towers", given, settings, scorer))


def reasons(ranking: Ranking) -> list[Reason]:
    return [verdict.reason for verdict in ranking.verdicts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("北京大学 founded", ["北京", "京大", "大学", "founded"]),
        ("猫 vs 犬", ["猫", "vs", "犬"]),
        ("read_file ＡＰＩ", ["read", "file", "api"]),
        ("ラーメン", ["ラー", "ーメ", "メン"]),
        ("서울역 Straße", ["서울", "울역", "strasse"]),
        ("GPT4对比Claude", ["gpt4", "对比", "claude"]),
        ("...!?", []),
    ],
)
def test_terms_are_words_or_pairs_of_characters(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


def test_chinese_results_rank_by_the_words_of_the_query() -> None:
    given = results("今天晴，最高气温20度", "清华大学位于北京海淀区", "北京大学创办于1898年，初名京师大学堂")
    ranking = rank_sparse("北京大学创办于哪一年", given, ONE)
    assert ranking.order == (2, 1, 0)
    assert ranking.kept == (2,)
    assert reasons(ranking) == ["below_threshold", "below_threshold", "relevant"]


def test_stop_words_of_the_query_count_for_nothing_beside_others() -> None:
    given = results("How tall is the average man", "Mont Blanc rises 4806 metres")
    assert rank_sparse("How tall is the Mont Blanc", given, ONE).order == (1, 0)
    assert rank_sparse("who is it", results("nothing", "it is who"), ONE).order == (1, 0)


def test_a_word_that_every_result_holds_tells_less_than_a_rare_one() -> None:
    given = results("python python tutorial", "python walrus operator", "python lists")
    assert rank_sparse("python walrus", given, ONE).order[0] == 1


def test_results_without_any_score_are_all_kept_in_their_order() -> None:
    ranking = rank_sparse("Eiffelturm", results("one", "two", "three", "four"), ONE)
    assert ranking.kept == ranking.order == (0, 1, 2, 3)
    assert set(reasons(ranking)) == {"no_evidence"}


@pytest.mark.parametrize("text", ["", "   ", "…"])
def test_results_without_words_are_ranked_too(text: str) -> None:
    assert rank_sparse("tower", results(text, text), ONE).kept in ((0, 1), (0,))


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.0, (0, 1, 2, 3)), (0.25, (0, 1, 2)), (0.5, (0, 2)), (0.51, (2,)), (1.0, (2,))]
)
def test_the_threshold_is_a_share_of_the_best_score(threshold: float, kept: tuple[int, ...]) -> None:
    scorer = Scores(0.25, 0.125, 0.5, 0.0)
    ranking = by_model(scorer, results("a", "b", "c", "d"), SearchSettings(threshold, min_keep=1))
    assert ranking.kept == kept
    assert ranking.order == (2, 0, 1, 3)
    assert [verdict.share for verdict in ranking.verdicts] == [0.5, 0.25, 1.0, 0.0]
    assert ranking.is_by_model


def test_top_k_and_the_minimum_bound_what_is_kept() -> None:
    scorer = Scores(0.9, 0.8, 0.7, 0.01, 0.02)
    given = results("a", "b", "c", "d", "e")
    ranking = by_model(scorer, given, SearchSettings(0.5, min_keep=4))
    assert reasons(ranking) == ["relevant", "relevant", "relevant", "below_threshold", "minimum"]
    ranking = by_model(scorer, given, SearchSettings(0.5, min_keep=4, top_k=2))
    assert ranking.kept == (0, 1)
    assert reasons(ranking)[2:] == ["beyond_top_k"] * 3


def test_equal_scores_stay_in_the_order_of_the_search_engine() -> None:
    assert by_model(Scores(0.5, 0.7, 0.5, 0.7), results("a", "b", "c", "d")).order == (1, 3, 0, 2)


def test_the_model_breaks_its_ties_by_words() -> None:
    assert by_model(Scores(0.5, 0.5), results("lakes", "towers")).order == (1, 0)


def test_the_model_reads_each_page_once_the_best_by_words_and_bounded() -> None:
    given = [*results("lakes", "towers " * 50, "towers of stone"), SearchResult("x", "towers of stone", "")]
    scorer = Scores(0.2, 0.4)
    ranking = by_model(scorer, given, SearchSettings(min_keep=1, max_scored=2, max_scored_chars=10))
    assert scorer.asked == [("towers", ["towers tow", "towers of "])]
    assert ranking.order == (2, 1, 0, 3)
    assert reasons(ranking) == ["not_scored", "relevant", "relevant", "duplicate"]
    assert [verdict.model_score for verdict in ranking.verdicts] == [None, 0.2, 0.4, None]


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (Scores(error=ScorerError("the endpoint is gone")), "ScorerError: the endpoint is gone"),
        (Scores(error=ZeroDivisionError("division by zero")), "ZeroDivisionError: division by zero"),
        (Scores(0.5), "1 scores for 3 texts"),
        (Scores(0.5, 0.5, float("nan")), "gave nan for text 2"),
        (Scores(0.5, 0.5, 1.5), "gave 1.5 for text 2"),
    ],
)
def test_a_model_that_fails_leaves_the_ranking_by_words_and_is_named(scorer: Scores, said: str) -> None:
    given = results("lakes", "towers", "towers and lakes")
    ranking = by_model(scorer, given)
    by_words = rank_sparse("towers", given, ONE)
    assert said in (ranking.model_failure or "")
    assert not ranking.is_by_model
    assert (ranking.verdicts, ranking.order) == (by_words.verdicts, by_words.order)


def test_what_the_model_did_not_see_ranks_behind_what_it_saw() -> None:
    ranking = decide(results("a", "b", "c", "d"), [9.0, 8.0, 0.0, 0.0], ONE, model={2: 0.0, 3: 0.1})
    assert ranking.order == (3, 2, 0, 1)
    assert reasons(ranking) == ["not_scored", "not_scored", "below_threshold", "relevant"]


def test_no_results_are_no_error_and_ask_no_model() -> None:
    scorer = Scores()
    ranking = by_model(scorer, [])
    assert (ranking.verdicts, ranking.order, ranking.kept) == ((), (), ())
    assert scorer.asked == []


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("http://www.a.org/x/", "https://A.org/x#top", True),
        ("https://a.org/x?utm_source=n&id=1", "https://a.org/x?id=1&gclid=z", True),
        ("https://a.org:443/x", "https://a.org/x", True),
        ("https://a.org/x?id=1", "https://a.org/x?id=2", False),
        ("https://a.org/X", "https://a.org/x", False),
        ("https://a.org/#/one", "https://a.org/#/two", False),
        ("https://a.org:8080/x", "https://a.org/x", False),
        ("http://[broken/x", "http://[broken/x", True),
    ],
)
def test_pages_are_the_same_where_only_the_address_differs(first: str, second: str, is_same: bool) -> None:
    assert (page(first) == page(second)) is is_same


def test_duplicates_go_name_what_they_repeat_and_count_for_no_score() -> None:
    given = [
        SearchResult(0, "Lakes", "of Italy", "https://a.org/1"),
        SearchResult(1, "Towers", "of Italy", "https://a.org/2"),
        SearchResult(2, "Towers and towers", "towers", "https://a.org/2/"),
        SearchResult(3, " LAKES ", "of  Italy", "https://b.org"),
        SearchResult(4, "Other words", "", "https://b.org/"),
    ]
    ranking = rank_sparse("towers", given, SearchSettings(min_keep=5))
    assert [verdict.duplicate_of for verdict in ranking.verdicts] == [None, None, 1, 0, 0]
    assert ranking.order == (1, 0, 2, 3, 4)
    assert ranking.kept == (0, 1)
    assert ranking.verdicts[1].share == 1.0


def test_results_without_text_repeat_nothing_unless_their_page_is_the_same() -> None:
    urls = ("https://a.org", "https://b.org", "", "", "https://a.org/")
    given = [SearchResult(place, "", "", url) for place, url in enumerate(urls)]
    assert reasons(rank_sparse("x", given)) == [*["no_evidence"] * 4, "duplicate"]


def test_savings_count_what_the_agent_is_spared() -> None:
    given = [SearchResult(0, "towers", "of stone", "u://1"), SearchResult(1, "湖泊", "x" * 35, "u://2")]
    saved = rank_sparse("towers", given, ONE).savings
    assert (saved.chars_before, saved.chars_after) == (19 + 42, 19)
    assert saved.tokens_before == estimated_tokens("towersof stoneu://1") + estimated_tokens(
        "湖泊" + "x" * 35 + "u://2"
    )
    assert saved.tokens_after == 6
    assert estimated_tokens("湖泊" + "x" * 35) == 2 + 10


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("text", "results: expected an array of results, got str 'text'"),
        (None, "results: expected an array of results, got nothing"),
        ([{"title": "a"}, 7], "results[1]: expected an object with title, snippet and url, got int 7"),
        ([{"title": "a"}, {"url": "u"}], "results[1]: expected a title or a snippet, got an object with url"),
        ([{"title": ["a"]}], "results[0].title: expected text, got list ['a']"),
        ([{"title": "a", "content": 5}], "results[0].content: expected text, got int 5"),
        ([{"title": "a", "href": b"u"}], "results[0].href: expected text, got bytes b'u'"),
        ([{"title": "a", "id": 1.5}], "results[0].id: expected text or a whole number, got float 1.5"),
        ([{"title": "a", "id": True}], "results[0].id: expected text or a whole number, got bool True"),
    ],
)
def test_malformed_results_are_named_by_place_and_field(raw: Any, said: str) -> None:
    with pytest.raises(SearchInputError) as raised:
        read_results(raw)
    assert str(raised.value) == said
    assert said.startswith(f"{raised.value.field}: ")


def test_results_of_other_tools_are_read_and_null_counts_as_absent() -> None:
    read = read_results([{"name": "n", "body": "b", "link": "l", "rank": 3}, {"title": None, "snippet": "", "id": "k"}])
    assert read == (SearchResult(0, "n", "b", "l"), SearchResult("k", "", "", ""))


def test_bounds_on_results_are_said() -> None:
    with pytest.raises(SearchInputError, match=r"results: expected at most 1 results in one call, got 2"):
        read_results([{"title": "a"}] * 2, max_results=1)
    with pytest.raises(SearchInputError, match=r"results\[1\]: expected at most 3, got 4 characters"):
        read_results([{"title": "abc"}, {"title": "ab", "url": "cd"}], max_chars=3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"threshold": 1.01}, "threshold: expected a number from 0 to 1, got float 1.01"),
        ({"threshold": float("nan")}, "threshold: expected a number from 0 to 1"),
        ({"threshold": "0.5"}, "threshold: expected a number from 0 to 1, got str '0.5'"),
        ({"min_keep": 0}, "min_keep: expected a whole number of at least 1, got int 0"),
        ({"min_keep": None}, "min_keep: expected a whole number of at least 1, got nothing"),
        ({"top_k": 0}, "top_k: expected a whole number of at least 1, got int 0"),
        ({"max_scored": True}, "max_scored: expected a whole number of at least 1, got bool True"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        SearchSettings(**values)
    assert said in str(raised.value)


@pytest.mark.parametrize("query", ["", " \n", None, 5])
def test_a_query_without_text_is_refused(query: Any) -> None:
    with pytest.raises(SearchInputError, match="query: expected text"):
        rank_sparse(query, results("a"))


# Few words, scripts and pages, so that matches, ties, duplicates and empty results are all common.
TEXTS = st.text(st.sampled_from("ab 北京x"), max_size=8)
RESULTS = st.lists(
    st.builds(SearchResult, st.integers(0, 5), TEXTS, TEXTS, st.sampled_from(("", "u://a", "http://a.b/c", "!"))),
    max_size=12,
)
SETTINGS = st.builds(
    SearchSettings,
    threshold=st.sampled_from((0.0, 0.3, 1.0)),
    min_keep=st.integers(1, 4),
    top_k=st.none() | st.integers(1, 5),
    max_scored=st.integers(1, 6),
)


class Guess:
    """Probabilities from the texts alone, equal and zero ones among them."""

    async def score(self, query: str, texts: Sequence[str]) -> list[float]:
        return [(len(text) % 4) / 3 for text in texts]


@given(TEXTS.filter(str.strip), RESULTS, SETTINGS, st.booleans())
def test_rankings_hold_what_they_promise(
    query: str, given: list[SearchResult], settings: SearchSettings, with_model: bool
) -> None:
    scorer = Guess() if with_model else None
    ranking = asyncio.run(rank(query, given, settings, scorer))
    assert ranking == asyncio.run(rank(query, given, settings, scorer)), "not deterministic"
    assert sorted(ranking.order) == list(range(len(given)))
    assert [(verdict.order_id, verdict.id) for verdict in ranking.verdicts] == list(enumerate(r.id for r in given))
    assert list(ranking.kept) == sorted(ranking.kept)
    originals = [verdict for verdict in ranking.verdicts if verdict.duplicate_of is None]
    most = len(originals) if settings.top_k is None else settings.top_k
    assert min(settings.min_keep, most, len(originals)) <= len(ranking.kept) <= most
    assert set(ranking.kept) == set(ranking.order[: len(ranking.kept)]), "a worse result was kept than one dropped"
    for verdict in ranking.verdicts:
        assert verdict.is_kept == (verdict.reason in ("relevant", "no_evidence", "minimum"))
        if verdict.duplicate_of is not None:
            assert ranking.verdicts[verdict.duplicate_of].duplicate_of is None
            assert verdict.duplicate_of < verdict.order_id
            assert not verdict.is_kept
        if verdict.reason == "relevant":
            assert verdict.share is not None
            assert verdict.share >= settings.threshold
    assert ranking.savings.tokens_after <= ranking.savings.tokens_before


@given(RESULTS, st.permutations(range(12)))
def test_scores_do_not_depend_on_the_order_of_results(given: list[SearchResult], shuffle: list[int]) -> None:
    places = [place for place in shuffle if place < len(given)]
    scores = [verdict.sparse_score for verdict in rank_sparse("ab 北京", given).verdicts]
    again = rank_sparse("ab 北京", [given[place] for place in places])
    assert [verdict.sparse_score for verdict in again.verdicts] == pytest.approx([scores[place] for place in places])
