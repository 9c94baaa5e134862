"""`POST /agentinfer/prefill` on a live server: the turn to come finds its prompt, and no turn waits for that."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.live_server import COMMON_FLAGS, LiveServer

pytestmark = pytest.mark.e2e

ROUTE = "/agentinfer/prefill"
FLAGS = ("--agentinfer-prefill-route", "--agentinfer-prefill-max", "2", "--agentinfer-forced-replay")
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
WORDS = ["harbour", "ledger", "signal", "copper", "orchard", "meadow", "window", "tunnel", "basket", "lantern"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(log=tmp_path_factory.mktemp("prefill") / "log", flags=(*COMMON_FLAGS, *FLAGS)) as live:
        yield live


def said(num_words: int, seed: str) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


def history(name: str, num_words: int) -> list[dict[str, Any]]:
    """What the other engine's session has come to: its last step called a tool, which still runs."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    return [
        {"role": "system", "content": f"You are the careful agent of {name}."},
        {"role": "user", "content": f"Find what is odd: {said(num_words, name)}."},
        {"role": "assistant", "content": "I will look at it.", "tool_calls": [call]},
    ]


RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "nothing odd"}


def wish(server: LiveServer, name: str, num_words: int, **fields: Any) -> dict[str, Any]:
    own = {"model": server.model, "messages": history(name, num_words), "tools": TOOLS}
    return {**own, "agentinfer": {"session": name}, **fields}


def prefill(server: LiveServer, body: Any) -> dict[str, Any]:
    status, told = server.post(ROUTE, body)
    assert status == 200, told
    return dict(told)


def turn(server: LiveServer, name: str, num_words: int, **fields: Any) -> tuple[int, int]:
    """Prompt and cached tokens of the session's next turn, once its tool has answered."""
    messages = [*history(name, num_words), RESULT]
    body = server.chat(messages, max_tokens=4, tools=TOOLS, agentinfer={"session": name}, **fields)
    usage = body["usage"]
    return usage["prompt_tokens"], (usage["prompt_tokens_details"] or {}).get("cached_tokens", 0)


def running(server: LiveServer) -> int:
    return int(server.get("/agentinfer/status")["prefill"]["running"])


def until(is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s"
        time.sleep(0.02)


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def start(clients: ThreadPoolExecutor, server: LiveServer, body: dict[str, Any]) -> Future[dict[str, Any]]:
    """A request that computes for a while; it does when this returns."""
    before = running(server)
    answer = clients.submit(prefill, server, body)
    until(lambda: running(server) > before or answer.done())
    return answer


def test_the_turn_to_come_finds_its_prompt_and_nobody_was_answered(server: LiveServer) -> None:
    before = server.get("/agentinfer/status")
    told = prefill(server, wish(server, "a", 900))
    assert (told["completed"], told["ended"], told["session"]) == (True, "completed", "a")
    assert told["computed_tokens"] + told["cached_tokens"] == told["prompt_tokens"]
    assert told["computed_tokens"] >= 0.9 * told["prompt_tokens"]
    after = server.get("/agentinfer/status")
    assert after["tokens"] == before["tokens"]
    assert after["turns"] == before["turns"]
    prompt_tokens, cached_tokens = turn(server, "a", 900)
    assert cached_tokens >= 0.95 * prompt_tokens
    assert cached_tokens >= told["prompt_tokens"]


def test_what_is_there_is_not_computed_again(server: LiveServer) -> None:
    prefill(server, wish(server, "again", 600))
    again = prefill(server, wish(server, "again", 600))
    assert again["completed"]
    assert again["computed_tokens"] < 0.05 * again["prompt_tokens"]
    # Nothing is known of this session, but what it says is in the cache.
    other = prefill(server, wish(server, "again", 600) | {"agentinfer": {"session": "other"}})
    assert other["computed_tokens"] < 0.05 * other["prompt_tokens"]


def test_what_the_sessions_own_turns_left_is_not_walked_through(server: LiveServer) -> None:
    prompt_tokens, _ = turn(server, "spoke", 1500)
    longer = [*history("spoke", 1500), RESULT, {"role": "assistant", "content": "It is fine, " * 20}]
    told = prefill(server, wish(server, "spoke", 1500, messages=longer))
    assert told["cached_tokens"] >= 0.95 * prompt_tokens
    new_tokens = told["prompt_tokens"] - prompt_tokens
    # Each step computes a token at least; a piece has 64 or more, and eight are a step where the turn was.
    assert told["computed_tokens"] <= new_tokens + 1500 // 512 + 8


def test_a_prompt_of_text_or_of_tokens_is_the_one_of_generate(server: LiveServer) -> None:
    text = said(500, "text")
    told = prefill(server, {"text": text})
    status, answer = server.post("/generate", {"text": text + " And", "sampling_params": {"max_new_tokens": 1}})
    assert status == 200
    assert answer["meta_info"]["cached_tokens"] >= told["prompt_tokens"] - 1
    ids = [random.Random("ids").randrange(100, 40_000) for _ in range(400)]
    assert prefill(server, {"input_ids": ids})["prompt_tokens"] == 400
    status, answer = server.post("/generate", {"input_ids": [*ids, 7], "sampling_params": {"max_new_tokens": 1}})
    assert (status, answer["meta_info"]["cached_tokens"]) == (200, 400)


def test_the_exact_prompt_of_a_request_is_all_there(server: LiveServer) -> None:
    messages = [*history("exact", 300), RESULT]
    told = prefill(server, wish(server, "exact", 300, messages=messages, exact=True))
    prompt_tokens, cached_tokens = turn(server, "exact", 300)
    # The last token is always computed: its successor is wanted.
    assert (told["prompt_tokens"], cached_tokens) == (prompt_tokens, prompt_tokens - 1)


def test_a_newer_request_of_the_session_takes_over(server: LiveServer, clients: ThreadPoolExecutor) -> None:
    first = start(clients, server, wish(server, "grows", 3000))
    time.sleep(0.5)
    longer = [*history("grows", 3000), RESULT, {"role": "assistant", "content": "So it is fine."}]
    second = prefill(server, wish(server, "grows", 3000, messages=longer))
    one = first.result()
    assert (one["completed"], one["ended"]) == (False, "superseded")
    assert 0 < one["computed_tokens"] < one["prompt_tokens"] < second["prompt_tokens"]
    assert second["completed"]
    # Of what the first computed, only a look's last token is computed anew.
    assert second["computed_tokens"] <= second["prompt_tokens"] - 0.9 * one["computed_tokens"]


def test_a_client_that_leaves_ends_it(server: LiveServer) -> None:
    before = server.get("/agentinfer/status")["prefill"]["requests"].get("client_gone", 0)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    raw = json.dumps(wish(server, "leaves", 5000))
    connection.request("POST", ROUTE, raw, {"content-type": "application/json"})
    until(lambda: running(server) == 1)
    connection.close()
    until(lambda: running(server) == 0, timeout_s=20.0)
    assert server.get("/agentinfer/status")["prefill"]["requests"]["client_gone"] == before + 1


def test_delete_ends_it_and_says_when_there_is_nothing(server: LiveServer, clients: ThreadPoolExecutor) -> None:
    answer = start(clients, server, wish(server, "team/given-up", 5000))
    request = urllib.request.Request(f"{server.url}{ROUTE}/team/given-up", method="DELETE")
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200
    assert (answer.result(60)["completed"], answer.result()["ended"]) == (False, "cancelled")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(request, timeout=30)


def test_the_sessions_own_turn_ends_it_and_computes_the_rest(server: LiveServer, clients: ThreadPoolExecutor) -> None:
    answer = start(clients, server, wish(server, "early", 3000))
    time.sleep(0.5)
    prompt_tokens, cached_tokens = turn(server, "early", 3000)
    told = answer.result(60)
    assert (told["completed"], told["ended"]) == (False, "turn")
    assert 0 < cached_tokens < prompt_tokens


def test_a_turn_beside_it_waits_for_no_more_than_a_piece(server: LiveServer, clients: ThreadPoolExecutor) -> None:
    def short_turn() -> float:
        started_s = time.monotonic()
        server.chat([{"role": "user", "content": "Hello."}], max_tokens=1, agentinfer={"session": "short"})
        return time.monotonic() - started_s

    short_turn()
    answer = start(clients, server, wish(server, "long", 5000))
    beside_s = [short_turn() for _ in range(5)]
    still_runs = not answer.done()
    whole_s = answer.result()["seconds"]
    assert still_runs
    assert sorted(beside_s)[2] < 0.2 * whole_s


def test_too_many_at_once_get_503_and_turns_go_on(server: LiveServer, clients: ThreadPoolExecutor) -> None:
    answers = [start(clients, server, wish(server, name, 4000)) for name in ("first", "second")]
    status, told = server.post(ROUTE, wish(server, "third", 10))
    assert (status, "--agentinfer-prefill-max" in told["message"]) == (503, True)
    server.chat([{"role": "user", "content": "Hello."}], max_tokens=1)
    for name, answer in zip(("first", "second"), answers, strict=True):
        request = urllib.request.Request(f"{server.url}{ROUTE}/{name}", method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()
        assert answer.result(60)["ended"] == "cancelled"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "'role' must be one of"),
        ({"messages": [{"role": "user", "content": said(26_000, "long")}]}, "messages", "the engine has room"),
        ({"agentinfer": {"session": 7}}, "agentinfer.session", "session"),
        ({"text": "both"}, "messages", "exactly one of"),
        ({"tools": "look"}, "messages", "tools"),
    ],
    ids=["no messages", "unknown role", "too long", "hint", "two prompts", "tools"],
)
def test_bad_input_names_its_field(fields, param, words, server: LiveServer) -> None:
    status, told = server.post(ROUTE, {**wish(server, "bad", 5), **fields})
    assert (status, told["param"]) == (400, param)
    assert words in told["message"]


def test_it_is_counted(server: LiveServer) -> None:
    prefill(server, wish(server, "counted", 50))
    figures = server.get("/metrics")
    (line,) = [each for each in figures.splitlines() if each.startswith('agentinfer_prefill_requests_total{end="comp')]
    assert float(line.split()[-1]) >= 1
    assert "agentinfer_prefill_computed_tokens_total" in figures
    assert "agentinfer_prefill_seconds_bucket" in figures
