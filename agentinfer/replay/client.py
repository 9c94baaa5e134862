"""One turn over HTTP: send the request, read the stream, note when what arrived. Errors come back as results."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from agentinfer.clock import Clock
from agentinfer.messages.sse import EventDecoder

_CONTENT_KEYS = ("content", "reasoning_content")


@dataclass(slots=True)
class Exchange:
    """What one request brought. Seconds are since the request was sent; None means it did not come.

    `ttft_s` is the first event with text, reasoning or a tool call in it; `last_token_s` the last such one. `error` is
    one line, None when the stream ended as it should.
    """

    latency_s: float = 0.0
    ttft_s: float | None = None
    last_token_s: float | None = None
    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    error_kind: str | None = None


class ChatClient:
    """Streams chat completions from one server. `timeout_s` bounds a whole turn, waiting in the server's queue too."""

    def __init__(self, http: aiohttp.ClientSession, url: str, clock: Clock, timeout_s: float) -> None:
        self._http = http
        self._url = url + "/v1/chat/completions"
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(10.0, timeout_s))
        self._timeout_s = timeout_s

    async def send(self, body: dict[str, Any]) -> Exchange:
        """Never raises for what a server or network does; cancellation passes through."""
        exchange = Exchange()
        sent_s = self._clock.monotonic_s()
        try:
            await self._stream(orjson.dumps(body), exchange, sent_s)
        except TimeoutError:
            exchange.error, exchange.error_kind = f"no end of reply within {self._timeout_s:g} s", "timeout"
        except aiohttp.ClientConnectionError as error:
            exchange.error, exchange.error_kind = f"connection failed: {error or type(error).__name__}", "connection"
        except aiohttp.ClientError as error:
            exchange.error, exchange.error_kind = f"{type(error).__name__}: {error}", "connection"
        if exchange.error:
            exchange.latency_s = self._clock.monotonic_s() - sent_s
        return exchange

    async def _stream(self, body: bytes, exchange: Exchange, sent_s: float) -> None:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        async with self._http.post(self._url, data=body, headers=headers, timeout=self._timeout) as response:
            if response.status != 200:
                answer = (await response.text(errors="replace"))[:500]
                exchange.error, exchange.error_kind = f"HTTP {response.status}: {answer}", f"http_{response.status}"
                return
            decoder = EventDecoder()
            async for received in response.content.iter_any():
                now_s = self._clock.monotonic_s() - sent_s
                for event in decoder.feed(received):
                    if event == b"[DONE]":
                        exchange.latency_s = now_s
                        await _read_rest(response)
                        return
                    self._take(event, exchange, now_s)
                    if exchange.error:
                        return
            exchange.error, exchange.error_kind = "the stream ended before [DONE]", "cut_stream"

    def _take(self, event: bytes, exchange: Exchange, now_s: float) -> None:
        try:
            chunk = orjson.loads(event)
        except orjson.JSONDecodeError:
            exchange.error, exchange.error_kind = f"an event is not JSON: {event[:200]!r}", "bad_event"
            return
        if chunk.get("error"):
            exchange.error, exchange.error_kind = f"in the stream: {str(chunk['error'])[:500]}", "stream_error"
            return
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if any(delta.get(key) for key in _CONTENT_KEYS) or delta.get("tool_calls"):
                exchange.ttft_s = now_s if exchange.ttft_s is None else exchange.ttft_s
                exchange.last_token_s = now_s
            exchange.text += delta.get("content") or ""
            exchange.reasoning += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or ():
                _add_call_delta(exchange.tool_calls, call)
            exchange.finish_reason = choice.get("finish_reason") or exchange.finish_reason
        usage = chunk.get("usage")
        if usage:
            exchange.prompt_tokens = usage.get("prompt_tokens")
            exchange.completion_tokens = usage.get("completion_tokens")
            exchange.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


async def _read_rest(response: aiohttp.ClientResponse) -> None:
    """Only the stream's end is left; a connection closed before it would look to the server like a lost client."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(1.0):
            await response.content.read()


def _add_call_delta(calls: list[dict[str, str]], delta: dict[str, Any]) -> None:
    """Arguments arrive in pieces, addressed by index."""
    index = delta.get("index") or 0
    while len(calls) <= index:
        calls.append({"name": "", "arguments": ""})
    function = delta.get("function") or {}
    calls[index]["name"] += function.get("name") or ""
    calls[index]["arguments"] += function.get("arguments") or ""


async def get_json(http: aiohttp.ClientSession, url: str, timeout_s: float = 10.0) -> dict[str, Any] | None:
    """The JSON object at `url`, or None when there is none to be had, for whatever reason."""
    try:
        async with asyncio.timeout(timeout_s), http.get(url) as response:
            found = await response.json(content_type=None) if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    return found if isinstance(found, dict) else None
