"""Engines for the virtual model's tests: real HTTP servers in this process, with faults a real engine shows rarely."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from agentinfer.collab_lang.settings import CollabSettings
from agentinfer.collab_lang.virtual_model.addresses import EngineAddress
from agentinfer.collab_lang.virtual_model.app import TURNS, create_app
from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings
from agentinfer.collab_lang.virtual_model.turns import Turns
from tests.live_server import free_port

LOOK = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
BLOCK = (
    "===PROGRESS===\n<reason> it found one of the facts that the task had asked for </reason>\n"
    "<value>{}</value>\n===END_PROGRESS==="
)


@dataclass
class FakeEngine:
    """Speaks `pieces` (`calls` after them), one chunk each; answers checks with `verdict`. `turns`, `checks` and
    `prefills` are the bodies that it got.

    `dies_after`: cuts the connection of a turn after so many pieces, or before its answer with -1. `fails_after`: says
    so in the stream, with `status_in_stream`. `status`: what turns are answered with. `gate`: turns wait for it before
    their last piece; `check_gate`: checks do, `prefill_gate`: prefills. `cut_checks`, `cut_turns`, `cut_prefills`: how
    many were left by who had asked.
    """

    name: str
    pieces: tuple[str, ...] = ("one ", "two ", "three")
    calls: tuple[dict[str, Any], ...] = ()
    verdict: Callable[[dict[str, Any]], str] = lambda body: "TRUE"
    p_true: float | None = None
    dies_after: int | None = None
    status_in_stream: int = 500
    status: int = 200
    fails_after: int | None = None
    prefill_status: int = 200
    is_ours: bool = True
    gate: asyncio.Event | None = None
    check_gate: asyncio.Event | None = None
    prefill_gate: asyncio.Event | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    rehearsals: list[dict[str, Any]] = field(default_factory=list)
    prefills: list[dict[str, Any]] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)
    routing_keys: list[str | None] = field(default_factory=list)
    cut_checks: int = 0
    cut_turns: int = 0
    cut_prefills: int = 0
    runner: web.AppRunner | None = None
    port: int = 0

    async def start(self) -> FakeEngine:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/health", self._ok)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/agentinfer/status", self._status)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/agentinfer/prefill", self._prefill)
        app.router.add_post("/v1/messages", self._message)
        app.router.add_post("/v1/responses", self._response)
        app.router.add_route("*", "/{path:.*}", self._other)
        self.runner, self.port = await served(app, self.port, handler_cancellation=True)
        return self

    async def stop(self) -> None:
        """As a killed process: every connection is cut, and none is taken any more."""
        if self.runner is None:
            return
        assert self.runner.server is not None
        for connection in list(self.runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self.runner.cleanup()
        self.runner = None

    async def _ok(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": self.name, "object": "model", "max_model_len": len(self.name)}]}
        )

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response({"model": self.name}, status=200 if self.is_ours else 404)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=f'# HELP n Things.\n# TYPE n counter\nn{{a="{self.name}"}} 2.0\nm 1\n')

    async def _other(self, request: web.Request) -> web.Response:
        self.others.append((request.method, request.path_qs))
        model = (await request.json()).get("model") if request.can_read_body else None
        return web.json_response({"by": self.name, "model": model})

    async def _message(self, request: web.Request) -> web.StreamResponse:
        """A whole answer of Anthropic's API with one call of a tool; cut after `dies_after` bytes."""
        self.turns.append(await request.json())
        use = {"type": "tool_use", "id": "use_1", "name": "look", "input": {"at": "it"}}
        content = [{"type": "text", "text": "".join(self.pieces)}, use]
        return await self._cut(request, {"type": "message", "role": "assistant", "content": content})

    async def _response(self, request: web.Request) -> web.StreamResponse:
        self.turns.append(await request.json())
        part = {"type": "output_text", "text": "".join(self.pieces)}
        item = {"type": "message", "role": "assistant", "content": [part]}
        answer = {"id": f"resp-{self.name}-{len(self.turns)}", "status": "completed", "output": [item]}
        return await self._cut(request, answer)

    async def _cut(self, request: web.Request, answer: dict[str, Any]) -> web.StreamResponse:
        raw = json.dumps({**answer, "by": self.name}).encode()
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(raw))})
        if self.dies_after != -1:
            await response.prepare(request)
            await response.write(raw[: self.dies_after])
            await asyncio.sleep(0.02)
        if self.dies_after is not None:
            request.transport.abort()  # type: ignore[union-attr]
        return response

    async def _prefill(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.prefills.append(body)
        self.routing_keys.append(request.headers.get("x-smg-routing-key"))
        if self.prefill_gate is not None:
            try:
                await self.prefill_gate.wait()
            except asyncio.CancelledError:
                self.cut_prefills += 1
                raise
        counts = {"prompt_tokens": 90, "cached_tokens": 10, "computed_tokens": 80, "completed": True}
        return web.json_response(counts, status=self.prefill_status)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if "regex" in body and "PROGRESS" in str(body["messages"][-1]):
            self.routing_keys.append(request.headers.get("x-smg-routing-key"))
            return await self._check(body)
        self.turns.append(body)
        self.routing_keys.append(request.headers.get("x-smg-routing-key"))
        try:
            return await self._turn(request, body)
        except asyncio.CancelledError:
            self.cut_turns += 1
            raise

    async def _check(self, body: dict[str, Any]) -> web.Response:
        if "Ready?" in str(body["messages"][0]):
            self.rehearsals.append(body)
            return web.json_response(self._whole("===", (), None))
        self.checks.append(body)
        if self.check_gate is not None:
            try:
                await self.check_gate.wait()
            except asyncio.CancelledError:
                self.cut_checks += 1
                raise
        text = BLOCK.format(self.verdict(body))
        return web.json_response(self._whole(text, (), None))

    async def _turn(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.status != 200:
            return web.json_response({"object": "error", "message": "no", "code": self.status}, status=self.status)
        if self.dies_after == -1:
            request.transport.abort()  # type: ignore[union-attr]
            return web.Response()
        if not body.get("stream"):
            if self.gate is not None:
                await self.gate.wait()
            if self.dies_after is not None:
                request.transport.abort()  # type: ignore[union-attr]
            return web.json_response(self._whole("".join(self.pieces), self.calls, body))
        return await self._stream(request, body)

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(choice: dict[str, Any] | None, **more: Any) -> None:
            choices = [] if choice is None else [{"index": 0, "finish_reason": None, **choice}]
            chunk = {"id": f"chat-{self.name}", "object": "chat.completion.chunk", "created": 7, "model": self.name}
            chunk |= {"choices": choices, **more}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        await send({"delta": {"role": "assistant", "content": ""}})
        for number, piece in enumerate(self.pieces):
            if number == self.dies_after:
                await asyncio.sleep(0.02)
                request.transport.abort()  # type: ignore[union-attr]
                return response
            if self.gate is not None and number == len(self.pieces) - 1:
                await self.gate.wait()
            if number == self.fails_after:
                # In one packet with the piece before it.
                error = {"error": {"object": "error", "message": "no memory", "code": self.status_in_stream}}
                await response.write(b"data: " + json.dumps(error).encode() + b"\n\ndata: [DONE]\n\n")
                return response
            await send({"delta": {"content": piece}})
        for index, call in enumerate(self.calls):
            head = {"name": call["function"]["name"], "arguments": ""}
            await send({"delta": {"tool_calls": [{**call, "index": index, "function": head}]}})
            if self.dies_after == len(self.pieces):
                await asyncio.sleep(0.02)
                request.transport.abort()  # type: ignore[union-attr]
                return response
            tail = {"arguments": call["function"]["arguments"]}
            await send({"delta": {"tool_calls": [{"index": index, "function": tail}]}})
        await send({"delta": {}, "finish_reason": "tool_calls" if self.calls else "stop"})
        if (body.get("stream_options") or {}).get("include_usage"):
            await send(None, usage=self._usage(body))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _whole(self, text: str, calls: tuple[dict[str, Any], ...], body: dict[str, Any] | None) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = list(calls)
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        return {"id": f"chat-{self.name}", "model": self.name, "choices": [choice], "usage": self._usage(body)}

    def _usage(self, body: dict[str, Any] | None) -> dict[str, Any]:
        """A token for each character of the messages' content; what was computed ahead is cached."""
        prompt = 100 * len(body["messages"]) if body is not None else 1
        cached = 90 if self.prefills else 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": len(self.pieces),
            "prompt_tokens_details": {"cached_tokens": cached} if cached else None,
        }


async def served(app: web.Application, port: int = 0, handler_cancellation: bool = False) -> tuple[web.AppRunner, int]:
    """Serves the app on `port`, 0 for any; the runner to clean up, and the port.

    Any is one that the kernel gives to no outgoing connection: an engine that was stopped finds its own free again.
    """
    runner = web.AppRunner(app, handler_cancellation=handler_cancellation, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port or free_port(), reuse_address=True)
    await site.start()
    return runner, int(runner.addresses[0][1])


@dataclass
class Front:
    """The virtual model before two fake engines, and an HTTP client of it."""

    large: FakeEngine
    small: FakeEngine
    port: int
    http: aiohttp.ClientSession
    turns: Turns

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def chat(
        self, messages: list[dict[str, Any]], headers: dict[str, str] | None = None, **fields: Any
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, body and headers of an unstreamed chat."""
        body = {"model": "collab", "messages": messages, **fields}
        async with self.http.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as answer:
            return answer.status, await answer.json(), dict(answer.headers)

    async def stream(self, messages: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed chat; its [DONE] must come."""
        body = {"model": "collab", "messages": messages, "stream": True, **fields}
        async with self.http.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return self.chunks(await answer.read())

    @staticmethod
    def chunks(raw: bytes) -> list[dict[str, Any]]:
        """What a stream said; its [DONE] must be there."""
        events = [line for line in raw.split(b"\n\n") if line]
        assert events[-1] == b"data: [DONE]"
        return [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.http.get(self.url + path) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text

    async def settled(self, session_id: str) -> None:
        """Waits until nothing runs between the session's turns."""
        session = self.turns.sessions.get(session_id)
        assert session is not None
        tasks = [task for task in (session.checking, session.warming) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        if session.warming is not None:
            await asyncio.gather(session.warming, return_exceptions=True)


def quick(**collab: Any) -> FrontSettings:
    """Settings for tests: polls that do not keep them waiting."""
    return FrontSettings(
        CollabSettings(max_steps=None, **collab), health_period_s=0.05, health_timeout_s=1.0, check_timeout_s=5.0
    )


@asynccontextmanager
async def front(
    large: FakeEngine | None = None, small: FakeEngine | None = None, settings: FrontSettings | None = None
) -> AsyncIterator[Front]:
    """A running front; the engines are started, unless they are already."""
    large, small = large or FakeEngine("big-model"), small or FakeEngine("little-model")
    for engine in (large, small):
        if engine.runner is None:
            await engine.start()
    addresses = {
        "large": EngineAddress("large", f"http://127.0.0.1:{large.port}", large.name),
        "small": EngineAddress("small", f"http://127.0.0.1:{small.port}", small.name),
    }
    app = create_app(addresses, settings or quick())
    # As some servers run it: aiohttp does not tell handlers of clients that left.
    runner, port = await served(app)
    http = aiohttp.ClientSession()
    try:
        yield Front(large, small, port, http, app[TURNS])
    finally:
        await http.close()
        await runner.cleanup()
        for engine in (large, small):
            await engine.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Runs a test that must not hang."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def until(holds: Callable[[], Any]) -> None:
    """Waits until it does; nothing here tells when."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def reply_of(chunks: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]], str | None]:
    """A stream's text, its tool-call pieces and its finish reason."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    calls = [piece for choice in choices for piece in choice["delta"].get("tool_calls") or ()]
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    return text, calls, reasons[-1] if reasons else None


def about_of(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a stream says of its turn, which only its last chunk with a choice or a usage does."""
    told = [chunk["agentinfer"]["collab"] for chunk in chunks if "agentinfer" in chunk]
    assert told
    return dict(told[-1])
