"""Greedy output on the CPU engine: equal to transformers' in float32, and the same however a request is served."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentinfer.models import prepare
from tests.live_server import LiveServer
from tests.stock_behaviour import exact_server

pytestmark = pytest.mark.e2e

NUM_TOKENS = 48
# Where one request runs at a time, or few do: enough to cross from prefill into decode many times over.
NUM_TOKENS_EACH = 24

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a small robot who",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4,",
    '{"name": "Ada", "born":',
    "Water boils at",
    "SELECT name, price FROM products WHERE",
    "Dear Sir or Madam,\n\n",
    "The three laws of motion state that",
    "<html>\n<head>\n<title>",
    "Q: What is the largest planet?\nA:",
    "import numpy as np\n\ndef softmax(x):\n",
    "Mix the flour and the butter, then",
    "It was a dark and stormy night;",
    "Translate to French: Good morning. ->",
    "A binary search tree is",
    "for (int i = 0; i < n; i++) {",
    "To be, or not to be,",
    "The meeting is on Monday at 10. The meeting is on Tuesday at",
    "User: My flight was cancelled. What can I do?\nAgent:",
)


@dataclass(frozen=True)
class Reference:
    """transformers' greedy continuation of a prompt, without its prompt."""

    prompt_ids: list[int]
    output_ids: list[int]


class Transformers:
    """The embedded model in float32 under transformers, on one thread."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = prepare("smollm2-135m", dtype="float32")
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def prompt_ids(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer(prompt).input_ids
        return ids

    def greedy(self, prompt_ids: list[int], guess: Sequence[int] = ()) -> Reference:
        """The greedy continuation. `guess` costs one forward pass as far as it is right and changes no token."""
        output_ids: list[int] = []
        while len(output_ids) < NUM_TOKENS:
            guessed = list(guess[len(output_ids) : NUM_TOKENS - 1])
            chosen = self._choices([*prompt_ids, *output_ids, *guessed])[len(prompt_ids) + len(output_ids) - 1 :]
            right = next((i for i, token in enumerate(guessed) if token != chosen[i]), len(guessed))
            output_ids += chosen[: right + 1]
            # Behind a wrong token the rest of the guess answers another text.
            guess = guess if right == len(guessed) else ()
        return Reference(prompt_ids, output_ids)

    def generate(self, prompt_ids: list[int]) -> list[int]:
        """The same by transformers' own loop, token for token."""
        ids = self._torch.tensor([prompt_ids])
        with self._one_thread():
            whole = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=NUM_TOKENS,
                max_new_tokens=NUM_TOKENS,
                eos_token_id=-1,  # no end of sequence: every prompt gives all of its tokens
            )
        output: list[int] = whole[0, len(prompt_ids) :].tolist()
        return output

    def _choices(self, ids: list[int]) -> list[int]:
        """The most likely token behind each of `ids`."""
        with self._one_thread():
            choices: list[int] = self._model(self._torch.tensor([ids])).logits[0].argmax(-1).tolist()
        return choices

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        threads = self._torch.get_num_threads()
        self._torch.set_num_threads(1)
        try:
            with self._torch.inference_mode():
                yield
        finally:
            self._torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def transformers() -> Transformers:
    return Transformers()


@pytest.fixture(scope="module")
def engine(stock_server: LiveServer) -> LiveServer:
    """Under the stock launcher: without a GPU this engine is the baseline too."""
    return stock_server


@pytest.fixture(scope="module")
def batched(engine: LiveServer, transformers: Transformers) -> list[Answer]:
    """The engine's answers to all prompts in one batch, behind an empty cache."""
    flush(engine)
    return generate(engine, [transformers.prompt_ids(prompt) for prompt in PROMPTS])


@pytest.fixture(scope="module")
def references(transformers: Transformers, batched: list[Answer]) -> list[Reference]:
    return [
        transformers.greedy(transformers.prompt_ids(prompt), answer.output_ids)
        for prompt, answer in zip(PROMPTS, batched, strict=True)
    ]


@pytest.fixture(scope="module")
def alone(engine: LiveServer, references: list[Reference]) -> list[Answer]:
    """The engine's answers to the first prompts, one after another, behind an empty cache."""
    flush(engine)
    return [generate(engine, [want.prompt_ids], NUM_TOKENS_EACH)[0] for want in references[:4]]


@dataclass(frozen=True)
class Answer:
    """One request's tokens, their log-probabilities as the server computed them, and what its cache held."""

    output_ids: list[int]
    logprobs: list[float]
    cached_tokens: int


def generate(live: LiveServer, prompts: list[list[int]], num_tokens: int = NUM_TOKENS) -> list[Answer]:
    """One request with all prompts, so that the scheduler gets them together."""
    sampling = {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True}
    status, answers = live.post(
        "/generate",
        {"input_ids": prompts, "sampling_params": sampling, "return_logprob": True},
        timeout_s=300,
    )
    assert status == 200, answers
    return [
        Answer(
            output_ids=answer["output_ids"],
            logprobs=[logprob for logprob, _, _ in answer["meta_info"]["output_token_logprobs"]],
            cached_tokens=answer["meta_info"]["cached_tokens"],
        )
        for answer in answers
    ]


def flush(live: LiveServer, timeout_s: float = 30.0) -> None:
    """Empties the prefix cache. Refused while the scheduler still ends the last batch, whose answers are out."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        status, body = live.post("/flush_cache", {})
        if status == 200:
            return
        assert time.monotonic() < deadline_s, body
        time.sleep(0.1)


def test_each_prompt_equals_transformers_one_at_a_time(alone: list[Answer], references: list[Reference]) -> None:
    for prompt, answer, want in zip(PROMPTS, alone, references, strict=False):
        assert answer.output_ids == want.output_ids[:NUM_TOKENS_EACH], prompt


def test_all_prompts_in_one_batch_equal_transformers(batched: list[Answer], references: list[Reference]) -> None:
    differing = [p for p, a, r in zip(PROMPTS, batched, references, strict=True) if a.output_ids != r.output_ids]
    assert differing == []


def test_references_do_not_depend_on_the_guess(transformers: Transformers, references: list[Reference]) -> None:
    """Guessed right, guessed wrong from the middle, and not guessed at all but by transformers' own loop."""
    want = references[0]
    middle = NUM_TOKENS - 4
    wrong = [*want.output_ids[:middle], *(token ^ 1 for token in want.output_ids[middle:])]
    assert transformers.greedy(want.prompt_ids, wrong) == want
    assert transformers.generate(want.prompt_ids) == want.output_ids


@pytest.mark.slow
def test_references_are_what_transformers_generates(transformers: Transformers, references: list[Reference]) -> None:
    for want in references:
        assert transformers.generate(want.prompt_ids) == want.output_ids


def test_prompts_that_continue_a_cached_answer_equal_transformers(
    engine: LiveServer, references: list[Reference]
) -> None:
    kept = NUM_TOKENS // 2
    flush(engine)
    generate(engine, [want.prompt_ids for want in references[:8]], kept + 1)
    longer = [want.prompt_ids + want.output_ids[:kept] for want in references[:8]]
    for answer, want, prompt_ids in zip(generate(engine, longer, NUM_TOKENS - kept), references, longer, strict=False):
        assert answer.cached_tokens >= len(prompt_ids) - 1
        assert answer.output_ids == want.output_ids[kept:]


def test_requests_that_arrive_while_others_run_equal_transformers(
    engine: LiveServer, references: list[Reference]
) -> None:
    flush(engine)
    with ThreadPoolExecutor(max_workers=5) as clients:
        answers = list(
            clients.map(lambda want: generate(engine, [want.prompt_ids], NUM_TOKENS_EACH)[0], references[:15])
        )
    assert [answer.output_ids for answer in answers] == [want.output_ids[:NUM_TOKENS_EACH] for want in references[:15]]


def test_log_probabilities_have_the_same_bits_alone_batched_and_behind_a_prefix(
    engine: LiveServer, alone: list[Answer], batched: list[Answer], references: list[Reference]
) -> None:
    prompts = [want.prompt_ids for want in references[: len(alone)]]
    generate(engine, prompts, 2)
    cached = generate(engine, prompts, NUM_TOKENS_EACH)
    assert all(answer.cached_tokens > 0 for answer in cached)
    assert [a.logprobs[:NUM_TOKENS_EACH] for a in batched[: len(alone)]] == [a.logprobs for a in alone]
    assert [a.logprobs for a in cached] == [a.logprobs for a in alone]


def test_long_prompt_in_chunks_beside_running_requests(engine: LiveServer, references: list[Reference]) -> None:
    """More than one 512-key block: whole, behind half of itself, and while others decode, the answer is one."""
    text = [token for want in references for token in want.prompt_ids + want.output_ids][:1200]
    flush(engine)
    (whole,) = generate(engine, [text], 16)
    flush(engine)
    generate(engine, [text[:600]], 1)
    (behind,) = generate(engine, [text], 16)
    flush(engine)
    beside = generate(engine, [references[0].prompt_ids, text, references[1].prompt_ids], 16)[1]
    assert behind.cached_tokens >= 600
    assert behind.logprobs == whole.logprobs
    assert beside.logprobs == whole.logprobs
    assert behind.output_ids == beside.output_ids == whole.output_ids


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("ninja") and shutil.which("g++")), reason="stock NGRAM compiles its corpus")
def test_stock_ngram_speculation_equals_transformers(tmp_path: Path, references: list[Reference]) -> None:
    flags = ("--speculative-algorithm", "NGRAM", "--speculative-ngram-capacity", "100000")
    with exact_server("sglang.launch_server", flags, tmp_path) as live:
        # The second time the corpus knows the text and the drafts are accepted.
        for _ in range(2):
            answers = generate(live, [want.prompt_ids for want in references[:12]])
            assert [a.output_ids for a in answers] == [want.output_ids for want in references[:12]]


@pytest.mark.slow
def test_paged_cache_with_host_tier_equals_transformers(tmp_path: Path, references: list[Reference]) -> None:
    flags = ("--page-size", "16", "--enable-hierarchical-cache", "--hicache-size", "1")
    with exact_server("sglang.launch_server", flags, tmp_path) as live:
        for _ in range(2):
            answers = generate(live, [want.prompt_ids for want in references[:12]])
            assert [a.output_ids for a in answers] == [want.output_ids for want in references[:12]]
