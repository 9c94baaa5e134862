"""AGENT_SAM on a real server: the answers are those of a server without it, in every way a request can be made."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer

from agentinfer.models import prepare
from tests.live_server import LiveServer

pytestmark = pytest.mark.e2e

# Equal bits are claimed for float32 and one thread.
EXACT = {"OMP_NUM_THREADS": "1"}

LISTING = """\
$ ls -l src
-rw-r--r-- 1 user user  4096 Jan  1 12:00 src/parser.py
-rw-r--r-- 1 user user  8192 Jan  1 12:00 src/printer.py
-rw-r--r-- 1 user user 12288 Jan  1 12:00 src/planner.py
$ cat src/parser.py
def parse(text):
    tokens = tokenize(text)
    tree = build_tree(tokens)
    return tree
$ cat src/printer.py
def pretty_print(tree):
    for node in tree:
        print(node.name, node.value)
    return tree
"""
# What follows is a copy of what came twice before.
COPIED = LISTING + LISTING + LISTING.partition("-rw")[0] + "-rw"
NEXT_COMMANDS = ("$ ls -l src\n", "$ cat src/parser.py\n", "$ cat src/printer.py\n", "$ git diff\n")


def float32_server(folder: Any, *flags: str, env: dict[str, str] | None = None) -> LiveServer:
    model = str(prepare("smollm2-135m", dtype="float32"))
    room = ("--max-total-tokens", "12288", "--max-running-requests", "16")
    common = (*room, "--model-path", model, "--dtype", "float32", "--served-model-name", "smollm2-135m")
    extra = ("--agentinfer-forced-replay", "--enable-custom-logit-processor", *flags)
    return LiveServer(log=folder / "log", flags=(*common, *extra), env={**EXACT, **(env or {})})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    # Speculation on the CPU runs without overlap, which decides two things a client can see: whether the last token of
    # a reply is cached, and which tokens a penalty already knows.
    with float32_server(tmp_path_factory.mktemp("plain"), "--disable-overlap-schedule") as live:
        yield live


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    # Whole drafts: what is verified must not depend on how busy this machine is.
    flags = ("--speculative-algorithm", "AGENT_SAM", "--no-agentinfer-spec-adapt")
    with float32_server(tmp_path_factory.mktemp("sam"), *flags) as live:
        yield live


def generate(live: LiveServer, prompt: str | list[int], num_tokens: int = 32, **fields: Any) -> dict[str, Any]:
    """One answer of the native route, greedy unless `sampling` says otherwise."""
    sampling = {"temperature": 0, "max_new_tokens": num_tokens, **fields.pop("sampling", {})}
    key = "text" if isinstance(prompt, str) else "input_ids"
    status, answer = live.post("/generate", {key: prompt, "sampling_params": sampling, **fields}, timeout_s=600)
    assert status == 200, answer
    return answer


def what_a_client_sees(answer: dict[str, Any]) -> dict[str, Any]:
    meta = answer["meta_info"]
    seen = ("finish_reason", "prompt_tokens", "completion_tokens")
    return {"text": answer["text"], "output_ids": answer["output_ids"], **{name: meta[name] for name in seen}}


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(prepare("smollm2-135m", dtype="float32") / "tokenizer.json"))


def encode(text: str) -> list[int]:
    return list(tokenizer().encode(text).ids)


def session(live: LiveServer, number: int, num_turns: int, num_tokens: int) -> list[list[int]]:
    """The replies of one multi-turn session, each turn's prompt being all of the turn before and a command."""
    prompt = encode(f"Session {number}.\n{LISTING}")
    replies = []
    for turn in range(num_turns):
        prompt = prompt + encode(NEXT_COMMANDS[(number + turn) % len(NEXT_COMMANDS)])
        answer = generate(live, prompt, num_tokens, sampling={"ignore_eos": True})
        if turn:
            assert answer["meta_info"]["cached_tokens"] > 0
        replies.append(answer["output_ids"])
        prompt = prompt + answer["output_ids"]
    return replies


def disturb(live: LiveServer, stop: threading.Event) -> None:
    """Sampled, constrained and aborted requests, one after the other, until told to stop."""
    rng = random.Random(7)
    while not stop.is_set():
        kind = rng.choice(("sampled", "regex", "aborted"))
        if kind == "sampled":
            generate(live, LISTING + "$ ls", 16, sampling={"temperature": 1.0, "top_p": 0.9, "top_k": 40})
        elif kind == "regex":
            generate(live, LISTING + "$ cat", 16, sampling={"regex": " src/(parser|printer|planner)\\.py"})
        else:
            rid = f"aborted-{rng.random()}"
            with ThreadPoolExecutor(1) as client:
                pending = client.submit(generate, live, LISTING, 256, rid=rid, sampling={"ignore_eos": True})
                time.sleep(0.5)
                live.post("/abort_request", {"rid": rid})
                assert pending.result()["meta_info"]["completion_tokens"] <= 256


def sessions_side_by_side(
    live: LiveServer, num_sessions: int, num_turns: int, num_tokens: int, is_disturbed: bool
) -> list[list[list[int]]]:
    stop = threading.Event()
    with ThreadPoolExecutor(num_sessions + 1) as clients:
        noise = clients.submit(disturb, live, stop) if is_disturbed else None
        try:
            numbers = range(num_sessions)
            replies = list(clients.map(lambda number: session(live, number, num_turns, num_tokens), numbers))
        finally:
            stop.set()
        if noise is not None:
            noise.result()
    return replies


def speculation(live: LiveServer) -> dict[str, float]:
    """Our counters, as Prometheus shows them."""
    lines = [line for line in live.get("/metrics").splitlines() if line.startswith("agentinfer_spec_")]
    return {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if "{" not in name}


def test_multi_turn_sessions_beside_other_traffic_have_the_plain_servers_tokens(
    plain: LiveServer, sam: LiveServer
) -> None:
    want = sessions_side_by_side(plain, 4, 3, 24, is_disturbed=False)
    seen = sessions_side_by_side(sam, 4, 3, 24, is_disturbed=True)
    assert seen == want
    figures = speculation(sam)
    assert figures["agentinfer_spec_accepted_tokens_total"] > 50
    assert figures["agentinfer_spec_accepted_tokens_total"] <= figures["agentinfer_spec_drafted_tokens_total"]


# Each way in which a request can constrain its answer, its end or its sampling.
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "length in the middle of a draft": {"num_tokens": 5},
    "one token": {"num_tokens": 1},
    "stop string": {"sampling": {"stop": ["build_tree"]}},
    "stop string kept": {"sampling": {"stop": ["tree"], "no_stop_trim": True}},
    "stop regex": {"sampling": {"stop_regex": ["tok[a-z]+\\("]}},
    "stop token": {"sampling": {"stop_token_ids": [198]}},
    "frequency penalty": {"sampling": {"frequency_penalty": 0.6}},
    "presence penalty": {"sampling": {"presence_penalty": 0.9}},
    "repetition penalty": {"sampling": {"repetition_penalty": 1.2}},
    "least length": {"sampling": {"min_new_tokens": 12, "stop_token_ids": [198, 28]}},
    "logit bias": {"sampling": {"logit_bias": {"198": -100.0, "28": 2.5}}},
    "regex": {"sampling": {"regex": "[a-z ]+\\(tree\\):\\n    for node in [a-z]+:"}},
    "json schema": {
        "sampling": {
            "json_schema": json.dumps(
                {"type": "object", "properties": {"path": {"enum": ["src/parser.py", "src/printer.py"]}}}
            )
        }
    },
    "greedy by top-k": {"sampling": {"temperature": 1.0, "top_k": 1}},
}


def test_requests_of_every_kind_have_the_plain_servers_answers(plain: LiveServer, sam: LiveServer) -> None:
    """All at once, so that every step of the batch serves requests with different rules."""
    prompt = f"{LISTING}$ cat src/parser.py\ndef parse(text):\n"

    def together(live: LiveServer) -> dict[str, dict[str, Any]]:
        live.post("/flush_cache", {})
        with ThreadPoolExecutor(len(REQUESTS)) as clients:
            answers = clients.map(
                lambda fields: generate(live, prompt, **{"num_tokens": 24, **fields}), REQUESTS.values()
            )
            return dict(zip(REQUESTS, map(what_a_client_sees, answers), strict=True))

    want, seen = together(plain), together(sam)
    assert seen == want
    # The text behind an end must not be in the cache: the next turn finds as much of it as without speculation.
    found = [
        {kind: generate(live, prompt + want[kind]["text"] + "\n$ ls", 1)["meta_info"]["cached_tokens"] for kind in want}
        for live in (plain, sam)
    ]
    assert found[1] == found[0]


def test_log_probabilities_of_drafted_tokens_are_the_plain_servers(plain: LiveServer, sam: LiveServer) -> None:
    fields = {"return_logprob": True, "top_logprobs_num": 3, "token_ids_logprob": [28, 198]}
    want, seen = (generate(live, COPIED, 24, **fields) for live in (plain, sam))
    assert seen["output_ids"] == want["output_ids"]
    assert seen["meta_info"]["spec_num_correct_drafts"] > 8
    for name in ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs"):
        assert len(seen["meta_info"][name]) == 24
        assert flat_numbers(seen["meta_info"][name]) == pytest.approx(flat_numbers(want["meta_info"][name]), abs=2e-4)


def flat_numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for each in value for number in flat_numbers(each)]
    return [] if value is None or isinstance(value, str) else [float(value)]


def test_statistics_are_in_meta_info(sam: LiveServer) -> None:
    meta = generate(sam, COPIED, 32, sampling={"ignore_eos": True})["meta_info"]
    # The first token is the prefill's.
    assert meta["spec_verify_ct"] + meta["spec_num_correct_drafts"] == meta["completion_tokens"] - 1
    assert meta["spec_accept_length"] > 1.5


def test_forced_replies_come_out_as_forced_and_are_drafted(plain: LiveServer, sam: LiveServer) -> None:
    text = LISTING.partition("$ cat")[0] + "Nothing else was asked for."
    request = [{"role": "user", "content": LISTING}]
    replies = [
        live.chat(request, max_tokens=256, agentinfer={"forced": {"text": text}}, return_meta_info=True)["choices"][0]
        for live in (plain, sam)
    ]
    assert [reply["message"]["content"] for reply in replies] == [text, text]


def test_several_samples_of_one_prompt(sam: LiveServer) -> None:
    sampling = {"temperature": 0.8, "n": 4, "max_new_tokens": 12, "ignore_eos": True}
    status, answers = sam.post("/generate", {"text": LISTING + "$ ls", "sampling_params": sampling})
    assert status == 200
    assert [answer["meta_info"]["completion_tokens"] for answer in answers] == [12] * 4


def test_sampled_tokens_follow_the_models_own_distribution(plain: LiveServer, sam: LiveServer) -> None:
    """The second and third token of a reply come from steps with drafts. Given what is before it, each has the plain
    server's distribution at temperature 1.5 and top-k 8: a chi-squared test at level 0.001 over 240 samples. Where one
    token's probability is 0.7 instead of 0.5, it fails with a probability of 0.96 at 10 degrees of freedom, 0.99 at 3
    (simulated); greedy verification would make it 1."""
    prompt = encode(COPIED)
    sampling = {"temperature": 1.5, "top_k": 8, "max_new_tokens": 3, "ignore_eos": True}
    before = speculation(sam)["agentinfer_spec_drafted_tokens_total"]
    status, answers = sam.post("/generate", {"input_ids": [prompt] * 240, "sampling_params": sampling}, timeout_s=300)
    assert status == 200, answers
    assert speculation(sam)["agentinfer_spec_drafted_tokens_total"] > before
    replies = [tuple(answer["output_ids"]) for answer in answers]
    statistic, freedom = 0.0, 0
    for length in (1, 2):
        followers: dict[tuple[int, ...], Counter[int]] = {}
        for reply in replies:
            followers.setdefault(reply[:length], Counter())[reply[length]] += 1
        for start, seen in followers.items():
            if seen.total() >= 40:
                expected = distribution(plain, [*prompt, *start], temperature=1.5, top_k=8)
                assert set(seen) <= set(expected)
                one_statistic, one_freedom = chi_squared(seen, expected)
                statistic, freedom = statistic + one_statistic, freedom + one_freedom
    assert freedom >= 3
    assert statistic < chi_squared_limit(freedom)


def distribution(live: LiveServer, prompt: list[int], temperature: float, top_k: int) -> dict[int, float]:
    """The next token's probabilities, from the log-probabilities that the server tells."""
    meta = generate(live, prompt, 1, return_logprob=True, top_logprobs_num=top_k)["meta_info"]
    weights = {token: math.exp(logprob / temperature) for logprob, token, _ in meta["output_top_logprobs"][0]}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def chi_squared(seen: Counter[int], expected: dict[int, float]) -> tuple[float, int]:
    """Statistic and degrees of freedom, with tokens expected fewer than 5 times in one cell."""
    rare = [token for token, probability in expected.items() if probability * seen.total() < 5]
    cells = [[token] for token in expected if token not in rare] + ([rare] if rare else [])
    statistic = 0.0
    for cell in cells:
        wanted = sum(expected[token] for token in cell) * seen.total()
        statistic += (sum(seen[token] for token in cell) - wanted) ** 2 / wanted
    return statistic, len(cells) - 1


def chi_squared_limit(freedom: int) -> float:
    """The 0.999 quantile (Wilson and Hilferty's approximation, 1931)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.slow
def test_hundred_multi_turn_requests_with_retractions_have_the_plain_servers_tokens(
    plain: LiveServer, tmp_path: Any
) -> None:
    """The engine takes requests back every 40 steps, and is disturbed all the while."""
    want = sessions_side_by_side(plain, 10, 10, 48, is_disturbed=False)
    env = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "40"}
    with float32_server(tmp_path, "--speculative-algorithm", "AGENT_SAM", env=env) as live:
        seen = sessions_side_by_side(live, 10, 10, 48, is_disturbed=True)
        assert "Testing retraction" in live.log.read_text(errors="replace")
    assert seen == want


@pytest.mark.slow
def test_very_long_prompts_in_chunks_have_the_plain_servers_tokens(plain: LiveServer, sam: LiveServer) -> None:
    prompt = encode("".join(f"Step {n}.\n{LISTING}" for n in range(30)))[:7000]
    want, seen = (generate(live, prompt, 64, sampling={"ignore_eos": True}) for live in (plain, sam))
    assert seen["output_ids"] == want["output_ids"]
    assert seen["meta_info"]["spec_accept_length"] > 2
