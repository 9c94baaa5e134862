"""The ranking route over an engine of a few lines: batches that let turns through, time limits, what start-up says."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from agentinfer.clock import ManualClock
from agentinfer.compress.search import ScorerError
from agentinfer.runtime.ranking import ranking_routes
from agentinfer.runtime.scoring import HOLD_S, EngineScorer, next_batch_size

LABELS = {" yes": [1], " no": [2]}


class Tokenizer:
    def __init__(self, labels: dict[str, list[int]] = LABELS) -> None:
        self.labels = labels

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        begin = [0] if add_special_tokens else []
        return begin + self.labels.get(text, [ord(character) for character in text])


class Engine:
    """A tokenizer manager whose model likes long texts; each result holds it for `result_s` on `clock`."""

    is_generation = True

    def __init__(self, result_s: float = 0.0, tokenizer: Any = None, error: Exception | None = None) -> None:
        self.clock = ManualClock()
        self.tokenizer = tokenizer or Tokenizer()
        self.result_s = result_s
        self.error = error
        self.batches: list[int] = []
        self.heads: list[list[int]] = []
        self.running = 0
        self.gate: asyncio.Event | None = None

    async def score_request(
        self, query: list[int], items: list[list[int]], label_token_ids: list[int], apply_softmax: bool
    ) -> SimpleNamespace:
        assert (label_token_ids, apply_softmax) == ([1, 2], True)
        self.running += 1
        assert self.running == 1, "two batches at once"
        self.batches.append(len(items))
        self.heads.append(query)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        self.clock.advance(self.result_s * len(items))
        self.running -= 1
        if self.error is not None:
            raise self.error
        return SimpleNamespace(scores=[[len(item) / 1000, 1 - len(item) / 1000] for item in items])

    def scorer(self) -> EngineScorer:
        return EngineScorer(lambda: self, self.clock)


def send(engine: Engine, body: dict[str, Any], registry: CollectorRegistry | None = None) -> httpx.Response:
    """The answer of a server that starts, ranks and stops."""
    app = FastAPI()
    app.include_router(ranking_routes(lambda: engine, registry or CollectorRegistry()))

    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as http,
        ):
            return await http.post("/agentinfer/rank", json=body)

    return asyncio.run(exchange())


def post(engine: Engine, **fields: Any) -> dict[str, Any]:
    results = [{"title": "t" * (place + 1)} for place in range(5)]
    answer = send(engine, {"query": "towers", "results": results, **fields})
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def test_a_fast_engine_gets_growing_batches() -> None:
    engine = Engine(result_s=0.0001)
    scores = asyncio.run(engine.scorer().score("q", ["x" * n for n in range(50)], timeout_s=9))
    assert engine.batches == [4, 8, 16, 22]
    assert scores == sorted(scores)
    assert len(set(map(tuple, engine.heads))) == 1


def test_a_slow_engine_is_held_for_no_longer_than_said_after_the_first_batch() -> None:
    engine = Engine(result_s=0.1)
    scorer = engine.scorer()
    asyncio.run(scorer.score("q", ["x"] * 9, timeout_s=9))
    assert engine.batches == [4, 2, 2, 1]
    assert all(size * engine.result_s <= HOLD_S for size in engine.batches[1:])


@pytest.mark.parametrize(
    ("batch_size", "num_scored", "took_s", "expected"),
    [(4, 4, 0.0, 8), (4, 3, 0.0, 4), (4, 4, HOLD_S, 4), (4, 4, 4 * HOLD_S, 1), (1, 1, 99.0, 1), (8, 2, HOLD_S, 2)],
)
def test_batches_follow_the_time_they_took(batch_size: int, num_scored: int, took_s: float, expected: int) -> None:
    assert next_batch_size(batch_size, num_scored, took_s) == expected


def test_rankings_take_turns_in_the_engine() -> None:
    engine = Engine()
    scorer = engine.scorer()

    async def both() -> Any:
        return await asyncio.gather(*(scorer.score("q", ["x"] * 6, timeout_s=9) for _ in range(3)))

    assert [len(scores) for scores in asyncio.run(both())] == [6, 6, 6]  # Engine asserts that none overlap


def test_after_the_time_is_over_the_batch_ends_and_no_further_one_goes() -> None:
    engine = Engine()

    async def story() -> None:
        engine.gate = asyncio.Event()
        scorer = engine.scorer()
        with pytest.raises(ScorerError, match=r"no scores within 0\.05 s"):
            await scorer.score("q", ["x"] * 50, timeout_s=0.05)
        assert engine.running == 1
        engine.clock.advance(0.05)
        engine.gate.set()
        await scorer.score("q", ["x"], timeout_s=9)

    asyncio.run(story())
    assert engine.batches == [4, 1]


def test_the_route_ranks_by_the_model_only_where_asked() -> None:
    engine = Engine()
    assert post(engine)["is_by_model"] is False
    assert engine.batches == []
    ranked = post(engine, model=True, top_k=2)
    assert (ranked["is_by_model"], ranked["order"], ranked["kept"]) == (True, [4, 3, 2, 1, 0], [3, 4])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"error": RuntimeError("out of memory")}, "RuntimeError: out of memory"),
        ({"tokenizer": Tokenizer({})}, "no single tokens for yes and no"),
    ],
)
def test_an_engine_that_cannot_score_leaves_the_ranking_by_words(change: dict[str, Any], said: str) -> None:
    body = post(Engine(**change), model=True)
    assert said in body["model_failure"]
    assert body["is_by_model"] is False
    assert body["kept"]


def test_a_model_without_single_tokens_for_its_answers_is_said_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        post(Engine())
        assert caplog.records == []
        post(Engine(tokenizer=Tokenizer({})))
    assert "cannot use the served model" in caplog.text
    assert "no single tokens for yes and no" in caplog.text


def test_embedding_models_and_servers_without_tokenizer_are_told_apart() -> None:
    embedding = Engine()
    embedding.is_generation = False
    assert "embedding model" in post(embedding, model=True)["model_failure"]
    bare = Engine()
    bare.tokenizer = None
    assert "--skip-tokenizer-init" in post(bare, model=True)["model_failure"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"timeout_s": 0}, "timeout_s: expected seconds above 0 and up to 120, got int 0"),
        ({"max_scored": 200}, "max_scored: expected only min_keep, model, query, results, threshold, timeout_s, top_k"),
        ({"query": "q" * 2001}, "query: expected text of at most 2000 characters, got 2001 characters"),
        ({"results": None}, "results: expected an array of results, got nothing"),
        ({"top_k": 0}, "top_k: expected a whole number of at least 1, got int 0"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], said: str) -> None:
    answer = send(Engine(), {"query": "q", "results": [], **fields})
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("engine", "fields", "judge"),
    [
        (Engine(), {}, "words"),
        (Engine(), {"model": True, "top_k": 2}, "model"),
        (Engine(error=RuntimeError("out of memory")), {"model": True}, "fallback"),
        (Engine(), {"top_k": 0}, "refused"),
        (Engine(), {"results": None}, "refused"),
    ],
    ids=["words", "model", "fallback", "bad setting", "no results"],
)
def test_rankings_are_counted_by_who_judged_and_what_was_kept(
    engine: Engine, fields: dict[str, Any], judge: str
) -> None:
    registry = CollectorRegistry()
    results = [{"title": "t" * (place + 1)} for place in range(5)]
    body = {"query": "towers", "results": results, "min_keep": 1, **fields}
    answer = send(engine, body, registry)

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"agentinfer_rank_{name}", labels) or 0.0

    assert value("requests_total", judge=judge) == 1
    if judge != "refused":
        kept = len(answer.json()["kept"])
        assert value("results_total", verdict="kept") == kept
        assert value("results_total", verdict="dropped") == 5 - kept
    assert value("seconds_count", judge=judge) == (judge != "refused")
