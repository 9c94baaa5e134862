"""The engine's own model as a scorer of search results: probabilities of yes and no, in batches, nothing generated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentinfer.clock import Clock
from agentinfer.compress.search import ScorerError
from agentinfer.compress.search.scoring import checked, label_ids, prompt_head, prompt_item
from agentinfer.runtime.seams import Seam

# Seconds that one batch should hold the engine, and so the most that a turn waits for a ranking.
HOLD_S = 0.25
FIRST_BATCH = 4

SEAMS = (
    Seam(
        target="sglang.srt.entrypoints.http_server.get_global_state",
        parameters=(),
        caller=None,
        reason="the tokenizer manager, which scores search results",
        feature="sessions",
        door="call",
        processes=("launcher",),
    ),
    Seam(
        target="sglang.srt.managers.tokenizer_manager_score_mixin.TokenizerManagerScoreMixin.score_request",
        parameters=(
            "self",
            "query",
            "items",
            "label_token_ids",
            "apply_softmax",
            "item_first",
            "embed_override_token_id",
            "query_embed_overrides",
            "item_embed_overrides",
            "request",
            "return_pooled_hidden_states",
            "score_extraction_token_id",
            "temperature",
            "return_token_logprobs",
        ),
        caller="sglang.srt.entrypoints.openai.serving_score.OpenAIServingScore._handle_non_streaming_request",
        reason="probabilities of yes and no after each search result of a batch",
        feature="sessions",
        door="call",
        processes=("launcher",),
    ),
    Seam(
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager.tokenizer",
        parameters=None,
        caller=None,
        reason="the tokens of yes and no, and of the prompts",
        feature="sessions",
        door="read",
        processes=("launcher",),
    ),
)


class EngineScorer:
    """Scores on the engine that also serves turns: one ranking at a time, in batches that hold it for `HOLD_S`.

    The engine runs a batch to its end before it looks at a turn that came meanwhile, and how many results fit into that
    time differs with machine and model. So batches follow the measured time. It grows with the engine's queue
    too: where turns wait, batches shrink.
    """

    def __init__(self, manager: Callable[[], Any], clock: Clock) -> None:
        """`manager` gives SGLang's tokenizer manager, once the server is set up."""
        self._manager = manager
        self._clock = clock
        self._turn = asyncio.Lock()
        self._batch_size = FIRST_BATCH

    def within(self, timeout_s: float) -> TimedScorer:
        """This engine as a `Scorer` that gives up after `timeout_s`, waiting for its turn included."""
        return TimedScorer(self, timeout_s)

    async def score(self, query: str, texts: Sequence[str], timeout_s: float) -> list[float]:
        """See `Scorer`. A batch that is in the engine when the time is over is finished there; no further one goes."""
        labels = engine_labels(self._manager())
        deadline_s = self._clock.monotonic_s() + timeout_s
        work = asyncio.ensure_future(self._score_in_turn(query, texts, labels, deadline_s))
        # Read once where nobody waits any longer, else Python reports it as never retrieved.
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(work), timeout_s)
        except TimeoutError:
            raise ScorerError(f"the engine gave no scores within {timeout_s:g} s") from None

    async def _score_in_turn(
        self, query: str, texts: Sequence[str], labels: tuple[int, int], deadline_s: float
    ) -> list[float]:
        manager = self._manager()
        # Apart from the results, so that it is the same tokens whatever a result begins with.
        head = list(manager.tokenizer.encode(prompt_head(query)))
        scores: list[float] = []
        async with self._turn:
            while len(scores) < len(texts):
                begun_s = self._clock.monotonic_s()
                if begun_s >= deadline_s:
                    raise TimeoutError
                batch = texts[len(scores) : len(scores) + self._batch_size]
                items = [list(manager.tokenizer.encode(prompt_item(text), add_special_tokens=False)) for text in batch]
                result = await manager.score_request(
                    query=head, items=items, label_token_ids=list(labels), apply_softmax=True
                )
                scores += checked([row[0] for row in result.scores], len(batch))
                self._batch_size = next_batch_size(self._batch_size, len(batch), self._clock.monotonic_s() - begun_s)
        return scores


@dataclass(frozen=True, slots=True)
class TimedScorer:
    """See `EngineScorer.within`."""

    engine: EngineScorer
    timeout_s: float

    async def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        return await self.engine.score(query, texts, self.timeout_s)


def next_batch_size(batch_size: int, num_scored: int, took_s: float) -> int:
    """How many results may go next, after `num_scored` of at most `batch_size` held the engine for `took_s`.

    What fits `HOLD_S`, but at most twice as many as before, and no more after a batch that was not full.
    """
    most = 2 * batch_size if num_scored == batch_size else batch_size
    return most if took_s <= 0 else max(1, min(most, int(num_scored * HOLD_S / took_s)))


def engine_labels(manager: Any) -> tuple[int, int]:
    """The engine's tokens for yes and no. Raises ScorerError where it has none."""
    if manager.tokenizer is None:
        raise ScorerError("the server runs without a tokenizer (--skip-tokenizer-init): rank without the model")
    if not manager.is_generation:
        raise ScorerError("the served model is an embedding model: rank without the model")
    return label_ids(lambda word: manager.tokenizer.encode(word, add_special_tokens=False))


def served_manager() -> Any:
    """SGLang's tokenizer manager of the server in this process, which has been set up."""
    from sglang.srt.entrypoints.http_server import get_global_state

    return get_global_state().tokenizer_manager
