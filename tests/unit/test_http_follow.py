"""The middleware around an app of a few lines: order of events, bytes untouched, every way an exchange can end."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from agentinfer.clock import ManualClock
from agentinfer.errors import ConfigError
from agentinfer.messages import Reply, shortened
from agentinfer.metrics import Metrics
from agentinfer.runtime.exchange import SHORTEN_AT_BYTES, Exchange
from agentinfer.runtime.follower import EngineFacts, TurnFollower
from agentinfer.runtime.http import FollowTurns
from agentinfer.runtime.turns import current_turn
from agentinfer.sessions import SessionTable

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "hello"}}]}).encode()


class Harness:
    """A follower, and the middleware around `app`; `sent` is what the client got."""

    def __init__(self, app: Callable[..., Awaitable[None]], served_models: tuple[str, ...] | None = ("m",)) -> None:
        self.clock = ManualClock()
        ids = (f"s{number}" for number in itertools.count())
        self.table = SessionTable(max_sessions=10, expiry_s=60, clock=self.clock, ids=lambda: next(ids))
        self.follower = TurnFollower(
            self.table, self.clock, Metrics(CollectorRegistry()), EngineFacts("m", "cpu", 1), about={}
        )
        self.is_open = True
        self.refused: list[Exception] = []
        self.middleware = FollowTurns(
            app, lambda: self.follower, lambda: self.is_open, served_models, self.refused.append
        )
        self.middleware._follower = self.follower
        self.sent: list[dict[str, Any]] = []

    def post(
        self,
        body: bytes | dict[str, Any],
        path: str = CHAT,
        headers: dict[str, str] | None = None,
        incoming: list[dict[str, Any]] | None = None,
        send: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
    ) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        messages = iter(incoming or [{"type": "http.request", "body": raw, "more_body": False}])

        async def receive() -> dict[str, Any]:
            return next(messages, {"type": "http.disconnect"})

        async def collect(message: dict[str, Any]) -> None:
            self.sent.append(message)

        pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {"type": "http", "method": "POST", "path": path, "headers": pairs}
        asyncio.run(self.middleware(scope, receive, send or collect))

    @property
    def outcome(self) -> str:
        (view,) = self.table.list()
        return str(view.notes["last_outcome"])

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


def answering(*pieces: bytes, status: int = 200, kind: bytes = b"application/json") -> Callable[..., Awaitable[None]]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        for number, piece in enumerate(pieces, start=1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})

    return app


def test_the_app_gets_the_very_bytes_the_client_sent() -> None:
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            got.append(message["body"])
            more = message["more_body"]

    raw = b'{ "messages" : [ {"role":"user","content":"\\u00e4"} ],\n "model":"m" }'
    pieces = [
        {"type": "http.request", "body": raw[:9], "more_body": True},
        {"type": "http.request", "body": raw[9:], "more_body": False},
    ]
    Harness(app).post(raw, incoming=pieces)
    assert got == [raw[:9], raw[9:]]


def test_a_turn_ends_after_the_last_byte_and_before_the_app_returns() -> None:
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answering(ANSWER)(scope, receive, send)
        order.append(f"app returns, running {harness.table.counts()['running']}")

    async def send(message: dict[str, Any]) -> None:
        order.append(f"{message['type']}, running {harness.table.counts()['running']}")

    harness = Harness(app)
    harness.post(ASK, send=send)
    assert order == ["http.response.start, running 1", "http.response.body, running 1", "app returns, running 0"]


def test_the_turn_is_bound_while_the_app_runs_and_only_then() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_turn.get())
        await answering(ANSWER)(scope, receive, send)

    Harness(app).post(ASK)
    assert seen[0].session_id == "s0"
    assert current_turn.get() is None


def test_a_streamed_reply_is_understood_from_its_events() -> None:
    events = [{"choices": [{"delta": {"content": text}}]} for text in ("hel", "lo")]
    pieces = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    harness = Harness(answering(*pieces, b"data: [DONE]\n\n", b"", kind=b"text/event-stream; charset=utf-8"))
    harness.post(ASK)
    assert harness.outcome == "ok"
    follow_up = [*ASK["messages"], {"role": "assistant", "content": "hello"}, {"role": "user", "content": "more"}]
    harness.post({**ASK, "messages": follow_up})
    (view,) = harness.table.list()
    assert view.num_turns == 2


def test_a_stream_that_repeats_itself_is_copied_in_little_memory_and_understood() -> None:
    """SGLang's /generate sends all so far with every token: 2,000 tokens are 14 MB."""
    events = [
        {"text": "word " * n, "output_ids": list(range(n)), "meta_info": {"id": "r", "completion_tokens": n}}
        for n in range(1, 2001)
    ]
    pieces = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    kept_bytes: list[int] = []

    async def collect(message: dict[str, Any]) -> None:
        kept_bytes.append(len(exchange.answer))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    exchange = Exchange(receive, collect)
    exchange.shorten = functools.partial(shortened, "generate")
    asyncio.run(answering(*pieces, b"data: [DONE]\n\n", kind=b"text/event-stream")({}, receive, exchange.send))
    assert sum(map(len, pieces)) > 14e6
    assert max(kept_bytes) < 2 * SHORTEN_AT_BYTES
    reply = Reply.from_sse("generate", bytes(exchange.answer))
    assert (reply.text, reply.token_ids) == (events[-1]["text"], tuple(range(2000)))


@pytest.mark.parametrize(
    ("app", "outcome"),
    [
        (answering(ANSWER), "ok"),
        (answering(b"data: {}\n\n", b"", kind=b"text/event-stream"), "ok"),
    ],
    ids=["whole", "stream"],
)
def test_outcome_of_a_complete_answer(app: Any, outcome: str) -> None:
    harness = Harness(app)
    harness.post(ASK)
    assert harness.outcome == outcome


def test_a_client_that_leaves_in_the_middle_is_noticed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"

    harness = Harness(app)
    harness.post(ASK)
    assert harness.outcome == "client_gone"
    assert harness.table.counts()["running"] == 0


def test_a_request_the_engine_refuses_is_no_turn_of_the_session() -> None:
    harness = Harness(answering(b'{"message": "too long"}', status=400))
    harness.post(ASK)
    assert len(harness.table) == 0
    assert harness.follower.status()["turns"] == {"error": 1}


def test_an_app_that_raises_ends_the_turn() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("boom")

    harness = Harness(app)
    with pytest.raises(RuntimeError, match="boom"):
        harness.post(ASK)
    assert harness.table.counts()["running"] == 0


def test_an_answer_that_cannot_be_understood_still_goes_out() -> None:
    harness = Harness(answering(b"\xff not json"))
    harness.post(ASK)
    assert harness.sent[1]["body"] == b"\xff not json"
    assert harness.table.counts()["running"] == 0


@pytest.mark.parametrize(
    ("path", "body", "headers", "is_open"),
    [
        ("/v1/embeddings", ASK, {}, True),
        (CHAT, b"{broken", {}, True),
        (CHAT, ASK, {"content-encoding": "gzip"}, True),
        (CHAT, ASK, {}, False),
        ("/generate", {"text": ["a", "b"]}, {}, True),
    ],
    ids=["other route", "no JSON", "compressed", "warm-up", "batch"],
)
def test_what_is_not_followed_passes_through(path: str, body: Any, headers: dict[str, str], is_open: bool) -> None:
    harness = Harness(answering(ANSWER))
    harness.is_open = is_open
    harness.post(body, path, headers)
    assert harness.sent[1]["body"] == ANSWER
    assert harness.table.totals["begun"] == 0


@pytest.mark.parametrize(
    ("path", "message_at"),
    [
        (CHAT, lambda body: body["message"]),
        ("/v1/messages", lambda body: body["error"]["message"]),
        ("/generate", lambda body: body["error"]["message"]),
    ],
    ids=["openai", "anthropic", "sglang"],
)
@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"[1, 2]", 400, "JSON object, got an array"),
        ({**ASK, "model": "other"}, 404, "'other' is not served here; this server has m"),
        ({**ASK, "agentinfer": {"turn": "x"}}, 400, "agentinfer.turn"),
    ],
    ids=["no object", "wrong model", "bad hint"],
)
def test_refusals_have_the_shape_of_the_api(
    path: str, message_at: Callable[[Any], str], body: Any, status: int, says: str
) -> None:
    harness = Harness(answering(ANSWER))
    harness.post(body, path)
    assert harness.status == status
    assert says in message_at(json.loads(harness.sent[1]["body"]))
    assert harness.table.totals["begun"] == 0


@pytest.mark.parametrize("model", ["m", "m:adapter", "default", "", None, 5], ids=str)
def test_names_of_the_served_model(model: object) -> None:
    harness = Harness(answering(ANSWER))
    harness.post({**ASK, "model": model})
    assert harness.status == 200


def test_any_model_name_passes_where_that_was_asked_for() -> None:
    harness = Harness(answering(ANSWER), served_models=None)
    harness.post({**ASK, "model": "anything"})
    assert harness.status == 200


def test_two_requests_at_once_keep_their_own_turns() -> None:
    gate = asyncio.Event()
    seen: dict[str, str] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        if len(seen) == 0:
            seen[body["user"]] = ""
            await gate.wait()
        else:
            gate.set()
        turn = current_turn.get()
        assert turn is not None
        seen[body["user"]] = turn.session_id
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": ANSWER, "more_body": False})

    harness = Harness(app)

    async def both() -> None:
        def request(name: str) -> Awaitable[None]:
            raw = json.dumps({**ASK, "user": name, "session_id": name}).encode()
            messages = iter([{"type": "http.request", "body": raw, "more_body": False}])

            async def receive() -> dict[str, Any]:
                return next(messages, {"type": "http.disconnect"})

            async def send(message: dict[str, Any]) -> None:
                return None

            scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
            return harness.middleware(scope, receive, send)

        await asyncio.gather(request("a"), request("b"))

    asyncio.run(both())
    assert seen == {"a": "a", "b": "b"}


def test_a_start_that_fails_is_told_and_ends_the_server_before_a_request() -> None:
    async def app(scope, receive, send) -> None:
        raise AssertionError("stock SGLang starts up although we do not")

    def fail() -> TurnFollower:
        raise ConfigError("the template will not do")

    server = Harness(app)
    server.middleware._start = fail
    incoming = [{"type": "lifespan.startup"}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(server.middleware({"type": "lifespan"}, receive, send))
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert [str(error) for error in server.refused] == ["the template will not do"]
