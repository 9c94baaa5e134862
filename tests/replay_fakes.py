"""An OpenAI-like server in this process, and small sessions, for the replayer's tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from agentinfer.replay.session import Session, SessionBuilder


@dataclass
class FakeServer:
    """Answers chat requests with the forced text, else "free"; what it saw is in `bodies`, in order of arrival.

    `server_turns` is what the session route tells, from its `written_after`-th answer on.
    `script(body, number)` may return a status to answer with, "cut" to close mid-stream, or "hang" to never end.
    """

    reports_cache: bool | None = True
    tokenizes: bool = True
    pause_s: float = 0.0
    end_pause_s: float = 0.0
    calls_apart: bool = False
    model: str = "fake"
    context_tokens: int | None = 8192
    server_turns: dict[str, list[dict[str, Any]]] | None = None
    script: Callable[[dict[str, Any], int], int | str | None] = lambda body, number: None
    change_text: Callable[[str], str] = lambda text: text
    bodies: list[dict[str, Any]] = field(default_factory=list)
    live: int = 0
    most_live: int = 0
    flushed: int = 0
    connections: set[object] = field(default_factory=set)
    asked: int = 0
    written_after: int = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/server_info", self._info)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/flush_cache", self._flush)
        app.router.add_get("/agentinfer/sessions/{id}", self._session)
        if self.tokenizes:
            app.router.add_post("/v1/tokenize", self._tokenize)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.model, "max_model_len": self.context_tokens}]})

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.0", "enable_cache_report": self.reports_cache, "api_key": "secret"})

    async def _flush(self, request: web.Request) -> web.Response:
        self.flushed += 1
        return web.Response(text="ok")

    async def _tokenize(self, request: web.Request) -> web.Response:
        """A word is a token; a message costs 4 more, as in a plain chat template."""
        body = await request.json()
        if "messages" in body:
            return web.json_response({"count": sum(4 + words(json.dumps(m)) for m in body["messages"])})
        return web.json_response({"count": [words(text) for text in body["prompt"]]})

    async def _session(self, request: web.Request) -> web.Response:
        if self.server_turns is None:
            return web.Response(status=404)
        self.asked += 1
        name = request.match_info["id"].split(".")[0]
        turns = self.server_turns.get(name, []) if self.asked > self.written_after else []
        return web.json_response({"recent_turns": turns})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.bodies)
        self.connections.add(request.transport)
        self.bodies.append(body)
        order = self.script(body, number)
        if isinstance(order, int):
            return web.Response(status=order, text="refused")
        self.live += 1
        self.most_live = max(self.most_live, self.live)
        try:
            return await self._stream(request, body, order)
        finally:
            self.live -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any], order: str | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await send(response, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        if self.pause_s:
            await asyncio.sleep(self.pause_s)
        text = self.change_text(body.get("agentinfer", {}).get("forced", {}).get("text", "free"))
        half = len(text) // 2
        for piece in (text[:half], text[half:]):
            if order == "hang":
                await asyncio.sleep(3600)
            await self._send_piece(response, piece)
            if order == "cut":
                assert request.transport is not None
                request.transport.abort()
                return response
        await send(response, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        prompt_tokens = sum(words(json.dumps(m)) for m in body["messages"])
        usage: dict[str, Any] = {"prompt_tokens": prompt_tokens, "completion_tokens": max(2, words(text))}
        if self.reports_cache and len(body["messages"]) > 2:
            usage["prompt_tokens_details"] = {"cached_tokens": prompt_tokens // 2}
        await send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        if self.end_pause_s:
            await asyncio.sleep(self.end_pause_s)
        return response

    async def _send_piece(self, response: web.StreamResponse, piece: str) -> None:
        if self.calls_apart and "<tool_call>" in piece:
            content, _, call = piece.partition("<tool_call>")
            parsed = json.loads(call.split("</tool_call>")[0])
            arguments = json.dumps(parsed["arguments"], separators=(",", ":"))
            delta = {"index": 0, "function": {"name": parsed["name"], "arguments": arguments[:3]}}
            rest = {"index": 0, "function": {"arguments": arguments[3:]}}
            await send(response, {"choices": [{"delta": {"content": content, "tool_calls": [delta]}}]})
            await send(response, {"choices": [{"delta": {"tool_calls": [rest]}}]})
        else:
            await send(response, {"choices": [{"delta": {"content": piece}}]})


async def send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def words(text: str) -> int:
    return len(text.split())


def with_server(fake: FakeServer, use: Callable[[str], Awaitable[Any]]) -> Any:
    """Run `use(url)` while the fake serves; returns what it returns."""

    async def main() -> Any:
        async with TestServer(fake.app()) as server:
            return await use(str(server.make_url("")).rstrip("/"))

    return asyncio.run(main())


def a_session(name: str, num_turns: int = 3, gap_s: float | None = None, words_each: int = 3) -> Session:
    """system, user, then (assistant calling `bash`, tool) a turn, and a last reply without a call."""
    builder = SessionBuilder(name)
    clock_s = None if gap_s is None else 0.0
    builder.add({"role": "system", "content": "You work for " + name}, clock_s)
    builder.add({"role": "user", "content": "Do it"}, clock_s)
    for number in range(num_turns - 1):
        call = {"id": f"c{number}", "function": {"name": "bash", "arguments": json.dumps({"command": f"ls é{number}"})}}
        builder.add({"role": "assistant", "content": f"Step {number}", "tool_calls": [call]}, clock_s)
        clock_s = None if clock_s is None or gap_s is None else clock_s + gap_s
        result = " ".join(f"w{number}" for _ in range(words_each))
        builder.add({"role": "tool", "tool_call_id": f"c{number}", "content": result}, clock_s)
    builder.add({"role": "assistant", "content": "Done"}, clock_s)
    return Session(id=name, task=name, run="0", source="test", turns=builder.turns())
