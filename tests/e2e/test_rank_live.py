"""`POST /agentinfer/rank` on the live server: by words, by the served model in one batch, and when the model fails."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agentinfer.compress.search import SearchResult, SearchSettings, SGLangScorer, rank
from agentinfer.compress.search.endpoint import CompletionsScorer
from agentinfer.compress.search.scoring import prompt_head, prompt_item
from tests.live_server import LiveServer

pytestmark = pytest.mark.e2e

QUERY = "How tall is the Eiffel Tower in metres?"
RESULTS = [
    {"title": "Eiffel Tower height", "snippet": "The Eiffel Tower is 330 metres tall.", "url": "https://a.example/1"},
    {"title": "Cheap pizza", "snippet": "Order pizza online tonight.", "url": "https://b.example/2"},
    {"title": "Paris hotels", "snippet": "Hotels near the tower from 80 euros.", "url": "https://c.example/3"},
    {"title": "Eiffel Tower height", "snippet": "Copied elsewhere.", "url": "http://www.a.example/1/#top"},
    {"title": "Gustave Eiffel", "snippet": "Engineer; his tower was 312 metres in 1889.", "url": "https://d.example/4"},
    {"title": "Python lists", "snippet": "How to append to a list.", "url": "https://e.example/5"},
]
TEXTS = [f"{result['title']}\n{result['snippet']}" for result in RESULTS]
# bfloat16 on the CPU, prefixes of other lengths found in the cache: the same logits up to rounding.
TOLERANCE = 0.03


def ranked(server: LiveServer, **fields: Any) -> dict[str, Any]:
    status, body = server.post("/agentinfer/rank", {"query": QUERY, "results": RESULTS, **fields})
    assert status == 200, body
    return body


def model_scores(body: dict[str, Any]) -> dict[int, float]:
    return {each["order_id"]: each["model_score"] for each in body["results"] if each["model_score"] is not None}


def single_token(server: LiveServer, word: str) -> int:
    status, body = server.post("/tokenize", {"prompt": word, "add_special_tokens": False})
    assert (status, body["count"]) == (200, 1)
    return int(body["tokens"][0])


def test_by_words_the_answer_is_first_and_what_shares_no_word_goes(server: LiveServer) -> None:
    body = ranked(server, min_keep=1)
    assert body["order"][0] == 0
    assert 0 in body["kept"]
    assert 1 not in body["kept"]
    assert body["results"][3]["reason"] == "duplicate"
    assert body["results"][3]["duplicate_of"] == 0
    assert body["is_by_model"] is False
    assert 'agentinfer_rank_requests_total{judge="words"}' in server.get("/metrics")
    assert body["savings"]["chars_after"] < body["savings"]["chars_before"]


def test_the_batch_scores_each_result_as_a_call_of_its_own_does(server: LiveServer) -> None:
    together = model_scores(ranked(server, model=True))
    assert sorted(together) == [0, 1, 2, 4, 5]  # 3 repeats 0
    for order_id, score in together.items():
        status, alone = server.post("/agentinfer/rank", {"query": QUERY, "results": [RESULTS[order_id]], "model": True})
        assert status == 200
        assert alone["results"][0]["model_score"] == pytest.approx(score, abs=TOLERANCE)
    assert max(together.values()) - min(together.values()) > 2 * TOLERANCE, "too alike for the comparison to tell"


def test_scores_are_what_the_model_gives_its_two_answers(server: LiveServer) -> None:
    """Against `/generate` with the prompt as text: the route's tokens, labels and softmax, found independently."""
    labels = [
        server.post("/tokenize", {"prompt": word, "add_special_tokens": False})[1]["tokens"] for word in (" yes", " no")
    ]
    (yes,), (no,) = labels
    for order_id, score in model_scores(ranked(server, model=True)).items():
        request = {
            "text": prompt_head(QUERY) + prompt_item(TEXTS[order_id]),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "token_ids_logprob": [yes, no],
        }
        status, body = server.post("/generate", request)
        assert status == 200, body
        listed = {token: logprob for logprob, token, _ in body["meta_info"]["output_token_ids_logprobs"][0]}
        odds = 2.718281828459045 ** (listed[yes] - listed[no])
        assert score == pytest.approx(odds / (1 + odds), abs=TOLERANCE)


def test_scorers_on_an_endpoint_agree_with_the_route(server: LiveServer) -> None:
    expected = model_scores(ranked(server, model=True))
    for scorer in (SGLangScorer(server.url, timeout_s=60), CompletionsScorer(f"{server.url}/v1", server.model, 60)):
        scores = asyncio.run(scorer.score(QUERY, [TEXTS[order_id] for order_id in expected]))
        assert scores == pytest.approx(list(expected.values()), abs=TOLERANCE), type(scorer).__name__


def test_a_model_that_is_late_leaves_the_ranking_by_words(server: LiveServer) -> None:
    late = ranked(server, model=True, timeout_s=0.0001)
    assert late["model_failure"] == "ScorerError: the engine gave no scores within 0.0001 s"
    by_words = ranked(server)
    assert late == {**by_words, "model_failure": late["model_failure"]}
    # What was abandoned has left the engine to the next one.
    assert ranked(server, model=True)["is_by_model"] is True


def test_an_endpoint_that_is_gone_leaves_the_ranking_by_words() -> None:
    results = [SearchResult(place, each["title"], each["snippet"]) for place, each in enumerate(RESULTS)]
    ranking = asyncio.run(rank(QUERY, results, SearchSettings(), SGLangScorer("http://127.0.0.1:9", timeout_s=5)))
    assert ranking.order[0] == 0
    assert "127.0.0.1:9" in (ranking.model_failure or "")


def test_turns_and_rankings_at_once_are_all_answered(server: LiveServer) -> None:
    many = [{"title": f"Page {n}", "snippet": f"Text number {n} on towers."} for n in range(200)]
    answers: list[Any] = []

    def ask() -> None:
        answers.append(
            server.post("/agentinfer/rank", {"query": QUERY, "results": many, "model": True, "timeout_s": 120})
        )

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    reply = server.chat([{"role": "user", "content": "Name a tower."}], max_tokens=4)
    for thread in threads:
        thread.join()
    assert reply["choices"][0]["message"]["content"]
    assert [(status, body["model_failure"]) for status, body in answers] == [(200, None)] * 2
    assert {len(model_scores(body)) for _, body in answers} == {50}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "no JSON"),
        ([1], 400, "must be a JSON object, got list"),
        ({"query": " ", "results": RESULTS}, 422, "query: expected text"),
        ({"query": "x", "results": "y"}, 422, "results: expected an array"),
        ({"query": "x", "results": [{}] * 201}, 422, "results: expected at most 200 results"),
        ({"query": "x", "results": [{"title": 5}]}, 422, "results[0].title: expected text, got int 5"),
        ({"query": "x", "results": [{"title": "t", "snippet": "s" * 8001}]}, 422, "results[0]: expected at most 8000"),
        ({"query": "x", "results": RESULTS, "treshold": 0.5}, 422, "treshold: expected only"),
        ({"query": "x", "results": RESULTS, "threshold": 1.5}, 422, "threshold: expected a number from 0 to 1"),
        ({"query": "x", "results": RESULTS, "model": "yes"}, 422, "model: expected true or false"),
    ],
)
def test_malformed_requests_are_told_what_is_wrong(server: LiveServer, body: Any, status: int, said: str) -> None:
    seen, answer = server.post("/agentinfer/rank", body)
    assert seen == status
    assert said in answer["message"]
