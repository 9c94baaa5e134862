"""AgentSched on a real server whose cache is too small for its sessions: the answers stay, more of the prompts is found
in the cache, and nothing is left behind. What is compared is counted in tokens, not in seconds."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from agentinfer.models import prepare
from tests.e2e.test_greedy_parity import flush
from tests.live_server import LiveServer

pytestmark = pytest.mark.e2e

NUM_SESSIONS, NUM_TURNS, NEW_TOKENS, REPLY_TOKENS = 5, 5, 100, 10
# The sessions' contexts come to 2,700 tokens.
TIGHT = "1100"
# A turn is never held for so long that a slow machine would let it visit.
PATIENT = ("--schedule-policy", "agent", "--agentinfer-sched-max-wait-s", "600")


def server(folder: Path, max_tokens: str, *flags: str, **env: str) -> LiveServer:
    """One thread and float32: equal then means equal."""
    exact = ("--model-path", str(prepare("smollm2-135m", dtype="float32")), "--dtype", "float32")
    size = ("--max-total-tokens", max_tokens, "--max-running-requests", "8", "--served-model-name", "m")
    return LiveServer(log=folder / "log", flags=(*exact, *size, *flags), env={"OMP_NUM_THREADS": "1", **env}, model="m")


def generate(live: LiveServer, session: str, tokens: list[int], num_tokens: int = REPLY_TOKENS, **fields: Any) -> Any:
    hints = {"session": session, **({"last": True} if fields.pop("last", False) else {})}
    sampling = {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True}
    body = {"input_ids": tokens, "sampling_params": sampling, "agentinfer": hints, **fields}
    status, answer = live.post("/generate", body, timeout_s=600)
    assert status == 200, answer
    return answer


@dataclass
class Outcome:
    """What a client saw: the replies of each session, and how much of its later prompts was cached."""

    replies: list[list[list[int]]]
    hit_rate: float


@cache
def text_of(number: int) -> tuple[tuple[int, ...], ...]:
    """What session `number` asks, turn by turn."""
    rng = random.Random(number)
    return tuple(tuple(rng.randrange(100, 40_000) for _ in range(NEW_TOKENS)) for _ in range(NUM_TURNS))


def closed_loop(live: LiveServer) -> Outcome:
    """All sessions side by side, each asking again as soon as it is answered."""

    def session(number: int) -> tuple[list[list[int]], int, int]:
        context: list[int] = []
        replies, cached, asked = [], 0, 0
        for turn, new in enumerate(text_of(number)):
            context += new
            answer = generate(live, f"s{number}", context, last=turn == NUM_TURNS - 1)
            if turn:
                cached += answer["meta_info"]["cached_tokens"]
                asked += len(context)
            replies.append(answer["output_ids"])
            context += answer["output_ids"]
        return replies, cached, asked

    with ThreadPoolExecutor(NUM_SESSIONS) as clients:
        seen = list(clients.map(session, range(NUM_SESSIONS)))
    return Outcome([replies for replies, _, _ in seen], sum(s[1] for s in seen) / sum(s[2] for s in seen))


def settled(live: LiveServer) -> dict[str, Any]:
    """The scheduler's figures once no turn is open."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        figures = live.get("/agentinfer/status")["scheduling"]
        if figures and not figures["open_turns"] and figures["age_s"] < 0.5:
            break
        generate(live, "asks", [5, 6, 7], 1, last=True)
        time.sleep(0.4)
    # Whatever was evicted was chosen by the policy, from a mirror that is right, and no request got away unseen.
    problems = {name: figures[name] for name in ("unordered_evictions", "mirror_errors", "swept_turns", "waiting")}
    assert problems == dict.fromkeys(problems, 0)
    assert figures["open_turns"] == 0
    return figures


@pytest.fixture(scope="module")
def stock(stock_server: LiveServer) -> Outcome:
    """By the stock launcher, where every session fits: no reply was touched by what memory pressure does."""
    flush(stock_server)
    return closed_loop(stock_server)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with server(tmp_path_factory.mktemp("agent"), TIGHT, *PATIENT) as live:
        yield live


def test_more_is_cached_than_by_the_longest_prefix_and_the_replies_are_stocks(
    stock: Outcome, agent: LiveServer, tmp_path: Path
) -> None:
    with server(tmp_path, TIGHT, "--schedule-policy", "lpm") as live:
        lpm = closed_loop(live)
    ours = closed_loop(agent)
    assert lpm.replies == stock.replies
    assert ours.replies == stock.replies
    assert lpm.hit_rate < 0.5 < stock.hit_rate
    assert ours.hit_rate > lpm.hit_rate + 0.2
    assert settled(agent)["sessions"] == 0


def test_context_of_an_ended_session_is_freed_before_a_waiting_ones(agent: LiveServer) -> None:
    assert agent.post("/flush_cache", {})[0] == 200
    rng = random.Random(9)
    ended, away, new = ([rng.randrange(100, 40_000) for _ in range(450)] for _ in range(3))
    generate(agent, "away", away)
    generate(agent, "ended", ended)  # used last: the least recently used context is the other one
    status = agent.get("/agentinfer/sessions/ended")
    assert status["state"] == "idle"
    generate(agent, "ended", ended, 1, last=True)
    generate(agent, "new", new)
    assert generate(agent, "away", away, 1)["meta_info"]["cached_tokens"] == len(away) - 1
    assert generate(agent, "ended", ended, 1, last=True)["meta_info"]["cached_tokens"] < len(ended) // 2
    settled(agent)


def test_aborted_turns_and_clients_that_leave_leave_nothing_behind(agent: LiveServer) -> None:
    """Running, held and half-computed prompts; taken back by request, and by clients that hang up."""
    before = settled(agent)["sessions"]  # other tests' sessions may live on
    rng = random.Random(3)
    prompts = [[rng.randrange(100, 40_000) for _ in range(400)] for _ in range(6)]
    with ThreadPoolExecutor(6) as clients:
        pending = [
            clients.submit(generate, agent, f"abort{n}", prompt, 200, rid=f"abort-{n}")
            for n, prompt in enumerate(prompts[:4])
        ]
        gone = [clients.submit(hang_up, agent, f"gone{n}", prompt) for n, prompt in enumerate(prompts[4:])]
        time.sleep(2.0)
        for number in range(4):
            agent.post("/abort_request", {"rid": f"abort-{number}"})
        for each in (*pending, *gone):
            each.exception(timeout=120)
    for number in range(4):
        close(agent, f"abort{number}")
    figures = settled(agent)
    assert (figures["sessions"], figures["held"]) == (before, 0)


def hang_up(live: LiveServer, session: str, tokens: list[int]) -> None:
    """A client that reads the head of a stream and closes the connection."""
    sampling = {"temperature": 0, "max_new_tokens": 200, "ignore_eos": True}
    body = {"input_ids": tokens, "sampling_params": sampling, "stream": True, "agentinfer": {"session": session}}
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=1.5)
    try:
        connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
        connection.getresponse().read(10)
    except TimeoutError:
        pass
    finally:
        connection.close()


def close(live: LiveServer, session: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    connection.request("DELETE", f"/agentinfer/sessions/{session}")
    assert connection.getresponse().status in (200, 404)
    connection.close()


def test_replies_are_stocks_when_requests_are_taken_back_all_the_time(stock: Outcome, tmp_path: Path) -> None:
    env = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "12"}
    with server(tmp_path, TIGHT, *PATIENT, **env) as live:
        assert closed_loop(live).replies == stock.replies
        settled(live)
        assert "Testing retraction" in live.log.read_text(errors="replace")


@pytest.mark.slow
def test_replies_are_stocks_with_everything_else_on(stock: Outcome, tmp_path: Path) -> None:
    flags = ("--speculative-algorithm", "AGENT_SAM", "--enable-hierarchical-cache", "--hicache-size", "1")
    more = ("--chunked-prefill-size", "64", "--enable-priority-scheduling", "--default-priority-value", "0")
    with server(tmp_path, TIGHT, *PATIENT, *flags, *more) as live:
        ours = closed_loop(live)
        settled(live)
    assert ours.replies == stock.replies
    assert ours.hit_rate > 0.5


@pytest.mark.slow
def test_two_ranks_decide_alike(stock: Outcome, tmp_path: Path) -> None:
    """SGLang compares on each call what its ranks insert and evict."""
    env = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
    with server(tmp_path, TIGHT, *PATIENT, "--tp-size", "2", **env) as live:
        ours = closed_loop(live)
        figures = settled(live)
    assert figures["sessions"] == 0
    assert ours.hit_rate > 0.5
    # Sums over two ranks are added in another order, so that a near tie may fall otherwise.
    same = sum(mine == theirs for mine, theirs in zip(ours.replies, stock.replies, strict=True))
    assert same >= NUM_SESSIONS - 1


@pytest.mark.slow
def test_model_with_sliding_windows(tmp_path: Path) -> None:
    """SGLang keeps Gemma 3's windows in the one pool for all layers; the cache for models with two is tested without a
    server."""
    model = ("--model-path", str(prepare("gemma3-270m", dtype="float32")), "--dtype", "float32")
    size = ("--max-total-tokens", TIGHT, "--max-running-requests", "8", "--served-model-name", "m")
    live = LiveServer(log=tmp_path / "log", flags=(*model, *size, *PATIENT), model="m")
    with live:
        ours = closed_loop(live)
        assert settled(live)["sessions"] == 0
    assert ours.hit_rate > 0.4
