"""Greedy output on the CPU engine: equal to transformers' in float32, and the same however a request is served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from agentinfer.models import prepare
from tests.live_server import COMMON_FLAGS, LiveServer

pytestmark = pytest.mark.e2e

NUM_TOKENS = 64
# Equal bits are claimed for float32 and one thread.
EXACT = {"OMP_NUM_THREADS": "1"}

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


@pytest.fixture(scope="module")
def references() -> list[Reference]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = prepare("smollm2-135m", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [reference(model, tokenizer(prompt, return_tensors="pt").input_ids) for prompt in PROMPTS]
    finally:
        torch.set_num_threads(threads)


def reference(model: Any, prompt_ids: Any) -> Reference:
    import torch

    with torch.inference_mode():
        # No end of sequence: every prompt gives all of its tokens.
        whole = model.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            do_sample=False,
            min_new_tokens=NUM_TOKENS,
            max_new_tokens=NUM_TOKENS,
            eos_token_id=-1,
        )
    ids = whole[0].tolist()
    return Reference(ids[: prompt_ids.shape[1]], ids[prompt_ids.shape[1] :])


def float32_server(log_dir: Any, *flags: str) -> LiveServer:
    """Under the stock launcher: without a GPU this engine is the baseline too."""
    model = str(prepare("smollm2-135m", dtype="float32"))
    return LiveServer(
        log=log_dir / "log",
        module="sglang.launch_server",
        flags=(*COMMON_FLAGS, "--model-path", model, "--dtype", "float32", *flags),
        env=EXACT,
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with float32_server(tmp_path_factory.mktemp("parity")) as live:
        yield live


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


def flush(live: LiveServer) -> None:
    status, body = live.post("/flush_cache", {})
    assert status == 200, body


def test_each_prompt_equals_transformers_one_at_a_time(engine: LiveServer, references: list[Reference]) -> None:
    for prompt, want in zip(PROMPTS[:6], references[:6], strict=True):
        (seen,) = generate(engine, [want.prompt_ids])
        assert seen.output_ids == want.output_ids, prompt


def test_all_prompts_in_one_batch_equal_transformers(engine: LiveServer, references: list[Reference]) -> None:
    flush(engine)
    answers = generate(engine, [want.prompt_ids for want in references])
    differing = [p for p, a, r in zip(PROMPTS, answers, references, strict=True) if a.output_ids != r.output_ids]
    assert differing == []


def test_prompts_that_continue_a_cached_answer_equal_transformers(
    engine: LiveServer, references: list[Reference]
) -> None:
    flush(engine)
    generate(engine, [want.prompt_ids for want in references[:12]])
    kept = NUM_TOKENS // 2
    longer = [want.prompt_ids + want.output_ids[:kept] for want in references[:12]]
    for answer, want, prompt_ids in zip(generate(engine, longer, NUM_TOKENS - kept), references, longer, strict=False):
        assert answer.cached_tokens >= len(prompt_ids) - 1
        assert answer.output_ids == want.output_ids[kept:]


def test_requests_that_arrive_while_others_run_equal_transformers(
    engine: LiveServer, references: list[Reference]
) -> None:
    flush(engine)
    with ThreadPoolExecutor(max_workers=5) as clients:
        answers = list(clients.map(lambda want: generate(engine, [want.prompt_ids])[0], references[:15]))
    assert [answer.output_ids for answer in answers] == [want.output_ids for want in references[:15]]


def test_log_probabilities_have_the_same_bits_alone_batched_and_behind_a_prefix(
    engine: LiveServer, references: list[Reference]
) -> None:
    prompts = [want.prompt_ids for want in references[:8]]
    flush(engine)
    alone = [generate(engine, [prompt], 24)[0] for prompt in prompts]
    cached = generate(engine, prompts, 24)
    flush(engine)
    batched = generate(engine, prompts, 24)
    assert all(answer.cached_tokens > 0 for answer in cached)
    assert [a.logprobs for a in batched] == [a.logprobs for a in alone]
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
def test_stock_ngram_speculation_equals_transformers(
    tmp_path_factory: pytest.TempPathFactory, references: list[Reference]
) -> None:
    flags = ("--speculative-algorithm", "NGRAM", "--speculative-ngram-capacity", "100000")
    with float32_server(tmp_path_factory.mktemp("ngram"), *flags) as live:
        # The second time the corpus knows the text and the drafts are accepted.
        for _ in range(2):
            answers = generate(live, [want.prompt_ids for want in references[:12]])
            assert [a.output_ids for a in answers] == [want.output_ids for want in references[:12]]


@pytest.mark.slow
def test_paged_cache_with_host_tier_equals_transformers(
    tmp_path_factory: pytest.TempPathFactory, references: list[Reference]
) -> None:
    flags = ("--page-size", "16", "--enable-hierarchical-cache", "--hicache-size", "1")
    with float32_server(tmp_path_factory.mktemp("paged"), *flags) as live:
        for _ in range(2):
            answers = generate(live, [want.prompt_ids for want in references[:12]])
            assert [a.output_ids for a in answers] == [want.output_ids for want in references[:12]]
