"""Counting tokens through the server's tokenizer route, with a characters-a-token estimate where there is none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import aiohttp

from agentinfer.replay.render import reply_text
from agentinfer.replay.session import Message

CHARS_PER_TOKEN = 3.5
_ROUTES = ("/v1/tokenize", "/tokenize")
_BATCH_CHARS = 4_000_000
# Role, separators and end-of-turn around each message: 4 to 6 tokens in common templates, rounded up.
MESSAGE_OVERHEAD_TOKENS = 8


class TokenCounter:
    """Counts texts on the server; `is_exact` turns False for good once the server proved to have no such route."""

    def __init__(self, http: aiohttp.ClientSession, url: str, model: str) -> None:
        self._http = http
        self._url = url
        self._model = model
        self._routes = list(_ROUTES)
        self._counts: dict[str, int] = {}
        self.is_exact = True

    async def count_messages(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of each message's own rendering, template overhead included. Estimated without the route."""
        texts = [reply_text(message) for message in messages]
        await self._learn(list(dict.fromkeys(t for t in texts if t and t not in self._counts)))
        return [MESSAGE_OVERHEAD_TOKENS + self._counts.get(t, 0) for t in texts]

    async def count_chat(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> int | None:
        """Tokens of the whole prompt as the server's chat template renders it, or None when the server cannot say."""
        body: dict[str, Any] = {"model": self._model, "messages": list(messages)}
        if tools:
            body["tools"] = list(tools)
        found = await self._ask(body)
        return found if isinstance(found, int) else None

    def estimate_tools(self, tools: Sequence[dict[str, Any]]) -> int:
        """A template lists each schema as JSON; only estimated, `count_chat` is the exact one."""
        return sum(estimate(json.dumps(tool)) for tool in tools)

    async def _learn(self, texts: list[str]) -> None:
        batch: list[str] = []
        size = 0
        for text in [*texts, None]:
            if batch and (text is None or size + len(text) > _BATCH_CHARS):
                counts = await self._ask({"model": self._model, "prompt": batch, "add_special_tokens": False})
                if not isinstance(counts, list) or len(counts) != len(batch):
                    counts = [estimate(t) for t in batch]
                    self.is_exact = False
                self._counts.update(zip(batch, counts, strict=True))
                batch, size = [], 0
            if text is not None:
                batch.append(text)
                size += len(text)

    async def _ask(self, body: dict[str, Any]) -> int | list[int] | None:
        for route in list(self._routes):
            try:
                async with self._http.post(self._url + route, json=body) as response:
                    if response.status == 200:
                        count = (await response.json(content_type=None)).get("count")
                        return count if isinstance(count, int | list) else None
                    if response.status in (404, 405):
                        self._routes.remove(route)
            except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError):
                continue
        return None


def estimate(text: str) -> int:
    return int(len(text) / CHARS_PER_TOKEN) + 1
