"""`/agentinfer/prefill` over an engine of a few lines: what is computed, what ends it, and what is refused by name."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from agentinfer.clock import ManualClock, SystemClock
from agentinfer.metrics import PrefillMetrics
from agentinfer.runtime.prefill import job as job_module
from agentinfer.runtime.prefill.door import Asked, DoorError, PromptDoor, chat_scope
from agentinfer.runtime.prefill.engine import Prompt, wanted_prompt
from agentinfer.runtime.prefill.job import Computer
from agentinfer.runtime.prefill.routes import prefill_routes
from agentinfer.runtime.prefill.service import PrefillService
from agentinfer.runtime.prefill.warming import Pace
from agentinfer.runtime.prefill.wish import read_wish
from agentinfer.runtime.refusals import RefusedRequest
from agentinfer.runtime.turns import current_turn

VOCABULARY = 1000
ROOM = 50_000


class Channel:
    """The scheduler's channel, as far as it hears of prompts computed ahead."""

    def __init__(self) -> None:
        self.open_turns = 0
        self.gone: list[str] = []

    def turn_begun(self) -> None:
        self.open_turns += 1

    def turn_finished(self) -> None:
        self.open_turns -= 1

    def session_gone(self, session_id: str) -> None:
        self.gone.append(session_id)


class Engine:
    """A prefix cache and the pieces it was given: (session, tokens). `gate`, where set, is waited for in each piece."""

    def __init__(self) -> None:
        self.cached: list[tuple[int, ...]] = []
        self.pieces: list[tuple[str, int]] = []
        self.ended: list[int] = []
        self.gate: asyncio.Event | None = None
        self.in_piece = asyncio.Event()
        self.error: Exception | None = None

    async def compute(self, prompt: Prompt, num_tokens: int, session_id: str, now_s: float) -> int:
        assert current_turn.get() is None
        ids = prompt.ids[:num_tokens]
        self.pieces.append((session_id, num_tokens))
        self.in_piece.set()
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        found = max((shared(ids, each) for each in self.cached), default=0)
        self.cached = [ids, *(each for each in self.cached if ids[: len(each)] != each)]
        self.ended.append(num_tokens)
        return max(1, num_tokens - found)

    def tokens_in_cache(self) -> int:
        return max(map(len, self.cached), default=0)


def shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """How many tokens they begin with in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low


class Server:
    """The routes in an app, over a service whose engine is `engine` and whose chat template is words with a role."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, max_jobs: int = 2) -> None:
        self.engine = Engine()
        self.channel = Channel()
        self.encode = lambda text: [3 + ord(each) % 900 for each in text]
        tokenizer = SimpleNamespace(encode=self.encode)
        model_config = SimpleNamespace(vocab_size=VOCABULARY)
        self.manager = SimpleNamespace(tokenizer=tokenizer, max_req_input_len=ROOM, model_config=model_config)
        self.service = PrefillService(
            max_jobs,
            Computer(Pace(ManualClock()), self.manager, SystemClock()),
            SystemClock(),
            PrefillMetrics(CollectorRegistry()),
            self.channel,  # type: ignore[arg-type]
        )
        self.service.serve_through(chat_app)
        self.app = FastAPI()
        self.app.include_router(prefill_routes(lambda: self.service, ("m",)))
        monkeypatch.setattr(job_module, "compute", self.engine.compute)

    def post(self, body: Any, client: asyncio.Event | None = None) -> asyncio.Task[tuple[int, Any]]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return asyncio.create_task(call(self.app, "POST", "/agentinfer/prefill", raw, client))

    async def delete(self, session: str) -> int:
        return (await call(self.app, "DELETE", f"/agentinfer/prefill/{session}", b"", None))[0]


async def call(app: Any, method: str, path: str, raw: bytes, gone: asyncio.Event | None) -> tuple[int, Any]:
    """One request; its client leaves when `gone` is set."""
    incoming = [{"type": "http.request", "body": raw, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(each.get("body", b"") for each in sent[1:]))


async def chat_app(scope: Any, receive: Any, send: Any) -> None:
    """SGLang's chat route: a token a character, a role before each message, the model's turn opened at the end."""
    assert (scope["path"], scope["method"]) == ("/v1/chat/completions", "POST")
    body = json.loads((await receive())["body"])
    wanted = wanted_prompt.get()
    assert wanted is not None
    messages = body["messages"]
    if body.get("strict") and [each["role"] for each in messages[-2:]] == ["user", "user"]:
        status, answer = 400, {"message": "roles must alternate"}
    else:
        text = "".join(f"<{each['role']}>{each['content']}" for each in messages) + "<assistant>"
        wanted.prompt = Prompt(tuple(text.encode()), {}, None)
        status, answer = 400, {"message": "only the prompt"}
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def chat(text: str = "x" * 2000, session: str = "s", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]
    return {"messages": messages, "agentinfer": {"session": session}, **fields}


def story(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


# -- what is computed -------------------------------------------------------------------------------------------------


def prompt_of(messages: list[dict[str, Any]], is_exact: bool = False, **fields: Any) -> str:
    asked = Asked.of(chat_scope({"type": "http", "method": "POST", "headers": []}), fields)
    door = PromptDoor(chat_app)
    prompt = asyncio.run((door.exact if is_exact else door.prompt)(asked, messages))
    return bytes(prompt.ids).decode()


USER, REPLY = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    ("messages", "is_exact", "fields", "prompt"),
    [
        ([USER, REPLY], False, {}, "<user>Why?<assistant>So.<user>"),
        ([USER], False, {}, "<user>Why?<"),
        ([USER], False, {"strict": True}, "<user>Why?<assistant>"),
        ([USER], True, {}, "<user>Why?<assistant>"),
    ],
    ids=["after a reply", "before one", "template wants the reply now", "exact"],
)
def test_the_prompt_is_what_all_have_that_go_on_from_the_messages(messages, is_exact, fields, prompt) -> None:
    assert prompt_of(messages, is_exact, **fields) == prompt


def test_a_call_is_followed_by_its_result() -> None:
    called = {**REPLY, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    assert prompt_of([USER, called]) == "<user>Why?<assistant>So.<tool>"


def test_a_request_that_the_app_refuses_has_no_prompt() -> None:
    with pytest.raises(DoorError, match="roles must alternate"):
        prompt_of([USER, USER], is_exact=True, strict=True)


def test_a_prompt_is_computed_and_a_longer_one_goes_on_from_it(monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch)
        status, first = await server.post(chat())
        assert status == 200
        assert first["completed"] is True
        tokens = len("<user>" + "x" * 2000 + "<assistant>Yes.<user>")
        assert (first["prompt_tokens"], first["computed_tokens"], first["cached_tokens"]) == (tokens, tokens, 0)
        assert server.engine.tokens_in_cache() == tokens
        assert {session for session, _ in server.engine.pieces} == {"s~ahead"}
        longer = chat()
        longer["messages"] += [{"role": "user", "content": "y" * 100}, {"role": "assistant", "content": "No."}]
        before = len(server.engine.pieces)
        _, second = await server.post(longer)
        assert second["computed_tokens"] < 300
        assert second["cached_tokens"] + second["computed_tokens"] == second["prompt_tokens"] > tokens
        # Eight pieces' length a look at what is there, then the piece that is new.
        assert len(server.engine.pieces) - before <= 3
        assert server.channel.open_turns == 0

    story(work)


def test_what_was_evicted_meanwhile_is_not_computed_in_one_piece(monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch)
        await server.post(chat("x" * 20_000))
        server.engine.cached.clear()
        before = len(server.engine.ended)
        _, again = await server.post(chat("x" * 20_000))
        assert (again["completed"], again["computed_tokens"]) == (True, again["prompt_tokens"])
        ends = [0, *server.engine.ended[before:]]
        steps = [end - begin for begin, end in itertools.pairwise(ends)]
        assert max(steps) == steps[0] == 8 * 256
        assert max(steps[1:]) <= 256

    story(work)


@pytest.mark.parametrize("as_text", [False, True], ids=["tokens", "text"])
def test_what_a_turn_left_in_the_cache_is_looked_at_in_long_steps(as_text, monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch)
        text = "z" * 4000
        ids = server.encode(text)
        server.engine.cached = [tuple(ids)]
        server.service.turn_begun("s")
        server.service.turn_finished("s", text if as_text else ids)
        _, told = await server.post({"input_ids": [*ids, 5, 6], "agentinfer": {"session": "s"}})
        assert [end for _, end in server.engine.pieces] == [2048, 4000, 4002]
        assert (told["computed_tokens"], told["cached_tokens"]) == (4, 3998)

    story(work)


@pytest.mark.parametrize("body", [{"text": "abc" * 50}, {"input_ids": [5, 6, 7] * 50}], ids=["text", "input_ids"])
def test_raw_prompts_are_computed_as_they_are(body, monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch)
        status, answer = await server.post(body)
        assert (status, answer["prompt_tokens"], answer["completed"]) == (200, 150, True)
        assert answer["session"].startswith("p-")

    story(work)


def test_tokens_need_no_tokenizer(monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch)
        server.manager.tokenizer = None
        status, answer = await server.post({"input_ids": [5, 6, 7] * 50})
        assert (status, answer.get("completed")) == (200, True), answer

    story(work)


# -- what ends it -----------------------------------------------------------------------------------------------------


def test_a_newer_request_of_the_session_takes_over_after_the_piece_that_runs(monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch, max_jobs=1)
        server.engine.gate = asyncio.Event()
        first = server.post(chat("x" * 3000))
        await server.engine.in_piece.wait()
        longer = chat("x" * 3000)
        longer["messages"] += [{"role": "user", "content": "and?"}]
        second = server.post(longer)
        await asyncio.sleep(0.02)
        assert len(server.engine.pieces) == 1, "one piece at a time is in the engine"
        server.engine.gate.set()
        (_, one), (_, two) = await first, await second
        assert (one["completed"], one["ended"], one["computed_tokens"]) == (False, "superseded", 256)
        assert (two["completed"], two["ended"]) == (True, "completed")
        assert two["computed_tokens"] == two["prompt_tokens"] - 256 + 1, "the first's piece is looked at, not computed"

    story(work)


@pytest.mark.parametrize("how", ["cancelled", "client_gone", "turn"])
def test_computing_ends_after_the_piece_that_runs(how, monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch)
        server.engine.gate = asyncio.Event()
        client = asyncio.Event()
        answer = server.post(chat("x" * 3000), client)
        await server.engine.in_piece.wait()
        if how == "cancelled":
            assert await server.delete("s") == 200
        elif how == "client_gone":
            client.set()
        else:
            server.service.turn_begun("s")
        await asyncio.sleep(0.02)
        server.engine.gate.set()
        _, told = await answer
        assert (told["completed"], told["ended"], told["computed_tokens"]) == (False, how, 256)
        assert server.engine.ended == [256]
        assert server.channel.open_turns == 0
        if how == "cancelled":
            assert await server.delete("s") == 404, "nothing is known of it any more"
            assert server.channel.gone == ["s~ahead"]
        else:
            server.service.turn_finished("s")
            assert server.channel.gone == ["s~ahead"], "the turn has it now"

    story(work)


def test_a_piece_that_is_not_computed_is_taken_back(monkeypatch) -> None:
    """As one that the scheduler holds back."""

    async def work() -> None:
        server = Server(monkeypatch)
        monkeypatch.setattr(job_module, "GIVE_UP_S", 0.02)
        server.engine.gate = asyncio.Event()
        answer = server.post(chat())
        await server.engine.in_piece.wait()
        assert await server.delete("s") == 200
        _, told = await answer
        assert (told["ended"], told["computed_tokens"], server.engine.ended) == ("cancelled", 0, [])
        server.engine.gate.set()
        assert (await server.post(chat()))[1]["completed"], "the engine is free again"

    story(work)


def test_a_session_that_is_over_ends_it_and_is_forgotten(monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch)
        await server.post(chat())
        server.service.session_gone("s")
        assert server.channel.gone == ["s~ahead"]
        assert not server.service.forget("s")

    story(work)


def test_a_cache_without_room_ends_it(monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch)

        async def compute(prompt: Prompt, num_tokens: int, session_id: str, now_s: float) -> int:
            return num_tokens

        monkeypatch.setattr(job_module, "compute", compute)
        status, told = await server.post(chat("x" * 9000))
        assert (status, told["completed"], told["ended"]) == (200, False, "no_room")

    story(work)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_too_many_at_once_are_refused_and_the_next_is_not(monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch)
        server.engine.gate = asyncio.Event()
        running = [server.post(chat(session=name)) for name in "ab"]
        await server.engine.in_piece.wait()
        status, refused = await server.post(chat(session="c"))
        assert status == 503
        assert "2 prompts are being computed ahead" in refused["message"]
        assert "--agentinfer-prefill-max" in refused["message"]
        server.engine.gate.set()
        await asyncio.gather(*running)
        assert (await server.post(chat(session="c")))[0] == 200
        assert server.service.status()["requests"] == {"completed": 3}

    story(work)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (b"{", None, "no JSON"),
        (b"[1]", "the request body", "expected a JSON object"),
        ({}, "messages", "exactly one of messages, text, input_ids, got none of them"),
        ({"messages": [USER], "text": "a"}, "messages", "got messages and text"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [USER, "and?"]}, "messages", "which number 1 is not"),
        ({"text": ["a", "b"]}, "text", "one only"),
        ({"text": ""}, "text", "not empty"),
        ({"input_ids": [[1, 2]]}, "input_ids", "of one prompt only"),
        ({"input_ids": [1, True]}, "input_ids", "token id"),
        ({"input_ids": [1, VOCABULARY]}, "input_ids", "below 1000"),
        ({"input_ids": [1] * ROOM}, "input_ids", "less than 50000 tokens"),
        ({"text": "a", "exact": "yes"}, "exact", "true or false"),
        ({"text": "a", "agentinfer": {"sesion": "s"}}, "agentinfer.sesion", "sesion"),
        ({"messages": [USER, USER], "strict": True, "exact": True}, "messages", "roles must alternate"),
    ],
    ids=lambda value: None if isinstance(value, dict | bytes) else str(value),
)
def test_bad_input_is_refused_by_its_fields_name(body, param, said, monkeypatch) -> None:
    async def work() -> None:
        status, told = await Server(monkeypatch).post(body)
        assert (status, told["param"]) == (400, param)
        assert said in told["message"]

    story(work)


def test_another_model_is_not_here(monkeypatch) -> None:
    async def work() -> None:
        status, told = await Server(monkeypatch).post({"text": "a", "model": "other"})
        assert (status, told["param"]) == (404, "model")

    story(work)


def test_what_the_engine_refuses_is_said(monkeypatch) -> None:
    async def work() -> None:
        server = Server(monkeypatch)
        server.engine.error = ValueError("no such adapter")
        status, told = await server.post(chat())
        assert (status, told["param"]) == (400, "messages")
        assert "the engine refused it: no such adapter" in told["message"]
        assert server.service.status() == {"running": 0, "requests": {"failed": 1}, "computed_tokens": 0}

    story(work)


def test_the_session_may_be_named_by_the_header() -> None:
    wish = read_wish(b'{"text": "a"}', {"x-agentinfer-session": "by-header"})
    assert (wish.session_id, wish.source, wish.prompt, wish.is_exact) == ("by-header", "text", "a", False)
    with pytest.raises(RefusedRequest, match="x-agentinfer-session"):
        read_wish(b'{"text": "a"}', {"x-agentinfer-session": ""})
