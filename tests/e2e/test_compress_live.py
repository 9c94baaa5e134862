"""AgentCompress on a live server: sessions are shortened, no turn pays for it, and nothing that was said is lost."""

from __future__ import annotations

import itertools
import json
import random
import socket
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.live_server import COMMON_FLAGS, LiveServer

pytestmark = pytest.mark.e2e

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
WORDS = ["harbour", "ledger", "signal", "copper", "orchard", "meadow", "window", "tunnel", "basket", "lantern"]
# So that sessions of a few turns are long enough; two steps keep their results.
SMALL = ("--agentinfer-compress-threshold-tokens", "500", "--agentinfer-compress-keep-steps", "2")
FLAGS = ("--agentinfer-forced-replay", "--enable-compress", *SMALL)
LONG, SHORT = 700, 12

_numbers = itertools.count()


class Agent:
    """A client that sends its whole history with each turn, as all do; every turn calls one tool."""

    def __init__(self, server: LiveServer, name: str) -> None:
        self.server = server
        self.name = name
        self.rng = random.Random(name)
        self.messages: list[dict[str, Any]] = [
            {"role": "system", "content": f"You are the careful agent of {name}."},
            {"role": "user", "content": f"Find out what is the matter with {name}."},
        ]

    @property
    def request(self) -> dict[str, Any]:
        """What a turn asks besides its messages."""
        return {"tools": TOOLS, "agentinfer": {"session": self.name, "forced": {"text": CALL}}}

    def turn(self, result_chars: int = LONG) -> dict[str, Any]:
        """One turn, whose tool has answered when this returns; the server's answer."""
        body = self.server.chat(self.messages, max_tokens=64, **self.request)
        self.take(body["choices"][0]["message"], result_chars)
        return body

    def take(self, reply: dict[str, Any], result_chars: int = LONG) -> None:
        """Adds the reply and what its tools found."""
        self.messages.append({"role": "assistant", "content": reply["content"], "tool_calls": reply["tool_calls"]})
        for call in reply["tool_calls"]:
            found = {"role": "tool", "tool_call_id": call["id"], "content": self.result(result_chars)}
            self.messages.append(found)

    def result(self, num_chars: int) -> str:
        """A tool result with a path and a number of its own."""
        head = f"/srv/{self.rng.choice(WORDS)}/{self.rng.randrange(10**6)}.log says {self.rng.randrange(10**6)}. "
        return (head + " ".join(self.rng.choices(WORDS, k=1 + num_chars // 7)))[:num_chars]

    def turns(self, *result_chars: int) -> list[dict[str, Any]]:
        """Turns whose tools take as long as what goes on beside them."""
        answers = []
        for each in result_chars:
            answers.append(self.turn(each))
            settle(self.server)
        return answers

    @property
    def seen(self) -> list[dict[str, Any]]:
        """What the server tells of this session's turns."""
        turns: list[dict[str, Any]] = self.server.get(f"/agentinfer/sessions/{self.name}")["recent_turns"]
        return turns

    @property
    def memory(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get(f"/agentinfer/sessions/{self.name}/memory")
        return found


def settle(server: LiveServer, timeout_s: float = 60.0) -> None:
    """Waits until no note is being made and no context computed."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        busy = server.get("/agentinfer/status")["compression"]["sessions"]
        if not busy["distilling"] and not busy["warming"]:
            return
        time.sleep(0.05)
    raise AssertionError(f"still at work after {timeout_s:g} s: {busy}\n{server.tail()}")


def status_of(server: LiveServer, path: str) -> tuple[int, str]:
    try:
        server.get(path)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    return 200, ""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compositions")


@pytest.fixture(scope="module")
def compressing(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[LiveServer]:
    flags = (*COMMON_FLAGS, *FLAGS, "--agentinfer-compress-store", str(store))
    with LiveServer(log=tmp_path_factory.mktemp("compress") / "log", flags=flags) as live:
        yield live


@pytest.fixture(scope="module")
def shortened(compressing: LiveServer) -> Agent:
    """A session that was shortened three times, each time after a tool that said little; no test continues it."""
    agent = Agent(compressing, "team/shortened")
    agent.turns(LONG, LONG, LONG, LONG, SHORT, LONG, LONG, LONG, SHORT, SHORT, SHORT)
    return agent


def own_tokens(agent: Agent, messages: list[dict[str, Any]]) -> int:
    """What the client's own words take, by a server that does not know them: one of them is written otherwise."""
    other = [{**messages[0], "content": messages[0]["content"] + " Go."}, *messages[1:]]
    # A session of one turn, so that none of its own contexts is ever shortened.
    session = {"session": f"{agent.name}-counted-{next(_numbers)}"}
    body = agent.server.chat(other, max_tokens=1, tools=TOOLS, agentinfer=session)
    return int(body["usage"]["prompt_tokens"])


def test_a_long_session_is_shortened_and_its_swaps_find_their_prompt_in_the_cache(shortened: Agent) -> None:
    turns = shortened.seen
    composed = [turn.get("composed", False) for turn in turns]
    assert composed == sorted(composed), "once shortened, it stays so"
    swaps = [turn for turn in turns if turn.get("composed") and turn["prefix"] is None]
    assert len(swaps) == 3
    for turn in swaps:
        assert turn["cached_tokens"] >= 0.95 * turn["prompt_tokens"]
    sent = shortened.messages[:-2]
    assert turns[-1]["prompt_tokens"] < 0.7 * own_tokens(shortened, sent)
    assert shortened.server.get("/agentinfer/status")["compression"]["jobs"]["swapped"] >= 3


def test_what_was_taken_comes_back_word_for_word_by_its_id(shortened: Agent) -> None:
    memory = shortened.memory
    taken = [each["id"] for each in memory["taken"]]
    last = int(taken[-1][1:])
    long_ones = [index for index in range(3, last + 1, 2) if len(shortened.messages[index]["content"]) == LONG]
    assert taken == [f"o{index}" for index in long_ones], "short results stay"
    assert len(taken) >= 5
    for each in taken:
        found = shortened.server.get(f"/agentinfer/sessions/{shortened.name}/memory/{each}")
        assert found["text"] == shortened.messages[int(each[1:])]["content"]
        assert found["tool"] == "look"
    assert len(memory["notes"]) == 3
    said = " ".join(note["as_read"] for note in memory["notes"])
    assert "/srv/" in said
    assert all(f"[{fact['source']}]" in said for note in memory["notes"] for fact in note["facts"])


def test_an_id_that_was_not_taken_is_answered_with_those_that_were(shortened: Agent) -> None:
    path = f"/agentinfer/sessions/{shortened.name}/memory"
    status, said = status_of(shortened.server, f"{path}/o4")
    assert (status, "o3, o5" in said) == (404, True)
    status, said = status_of(shortened.server, f"{path}/third")
    assert (status, "as in o12" in said) == (422, True)


def test_a_client_that_edits_its_history_gets_its_own_words(shortened: Agent) -> None:
    sent = list(shortened.messages[:-2])
    edited = [*sent[:3], {**sent[3], "content": sent[3]["content"] + " (edited)"}, *sent[4:]]
    body = shortened.server.chat(edited, max_tokens=1, **shortened.request | {"agentinfer": {"session": "an editor"}})
    assert body["usage"]["prompt_tokens"] >= own_tokens(shortened, sent)


def test_every_way_to_ask_goes_on_from_the_shortened_context(shortened: Agent) -> None:

    def as_another(name: str) -> dict[str, Any]:
        return {"tools": TOOLS, "agentinfer": {"session": f"another-{name}"}}

    server, messages = shortened.server, shortened.messages
    whole = server.chat(messages, max_tokens=3, **as_another("whole"))
    own = own_tokens(shortened, messages)
    assert whole["usage"]["prompt_tokens"] < 0.7 * own
    several = server.chat(messages, max_tokens=3, n=2, logprobs=True, top_logprobs=1, **as_another("n"))
    assert [len(choice["logprobs"]["content"]) for choice in several["choices"]] == [3, 3]
    body = {"model": server.model, "messages": messages, "max_tokens": 3, "temperature": 0, **as_another("stream")}
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    status, raw = server.post("/v1/chat/completions", streamed)
    assert status == 200
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    assert events[-1]["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert events[-1]["usage"]["completion_tokens"] == 3


def test_two_clients_on_one_session_both_have_their_own_memory(compressing: LiveServer) -> None:
    first, second = Agent(compressing, "shared"), Agent(compressing, "shared")
    second.messages[1] = {"role": "user", "content": "Do quite another thing, and say when it is done."}
    with ThreadPoolExecutor(2) as clients:
        for _ in range(4):
            list(clients.map(lambda agent: agent.turn(), (first, second)))
    settle(compressing)
    for agent in (first, second):
        sent = list(agent.messages)
        tokens = agent.turn()["usage"]["prompt_tokens"]
        assert tokens <= own_tokens(agent, sent)
    assert compressing.get("/agentinfer/sessions/shared")["last_outcome"] == "ok"


def test_results_out_of_order_keep_their_calls(compressing: LiveServer) -> None:
    agent = Agent(compressing, "out-of-order")
    for _ in range(4):
        body = compressing.chat(
            agent.messages, max_tokens=80, tools=TOOLS, agentinfer={"session": agent.name, "forced": {"text": CALL * 2}}
        )
        reply = body["choices"][0]["message"]
        assert len(reply["tool_calls"]) == 2
        agent.take(reply)
        agent.messages[-2:] = reversed(agent.messages[-2:])
        settle(compressing)
    agent.messages[-1]["content"] = agent.messages[-2]["content"] = "nothing"
    agent.turns(SHORT, SHORT, SHORT)
    assert agent.seen[-1]["composed"] is True
    for each in agent.memory["taken"]:
        found = compressing.get(f"/agentinfer/sessions/{agent.name}/memory/{each['id']}")
        assert found["text"] == agent.messages[int(each["id"][1:])]["content"]


def test_a_restarted_server_goes_on_from_the_shortened_contexts(shortened: Agent, store: Path, tmp_path: Path) -> None:
    """Here with a model for notes that never answers, which only new notes need: those are made without it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        model = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        own = ("--agentinfer-compress-model", model, "--agentinfer-compress-timeout-s", "4")
        flags = (*COMMON_FLAGS, *FLAGS, *own, "--agentinfer-compress-store", str(store))
        with LiveServer(log=tmp_path / "log", flags=flags) as restarted:
            again = Agent(restarted, shortened.name)
            again.messages = list(shortened.messages[:-2])
            tokens = again.turn()["usage"]["prompt_tokens"]
            assert tokens == shortened.seen[-1]["prompt_tokens"]
            assert again.memory == shortened.memory
            agent = Agent(restarted, "without-the-model")
            agent.turns(LONG, LONG, LONG, LONG, SHORT, SHORT)
            assert agent.seen[-1]["composed"] is True
            assert restarted.get("/agentinfer/status")["compression"]["model_notes"]["failed"] >= 1
