"""Which distiller a configuration names, and the one that runs where no other can: its work beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

import orjson

from agentinfer.compress.distiller import Assignment, Distiller
from agentinfer.compress.extractive import ExtractiveDistiller
from agentinfer.compress.model_distiller import Counts, ModelDistiller
from agentinfer.compress.note import Note
from agentinfer.config import CompressionConfig
from agentinfer.errors import ConfigError
from agentinfer.runtime.compression.door import AppDoor, Asked, DoorError

EXTRACTIVE: Final = "extractive"
ENGINE: Final = "engine"

# Of the time for a note, what the model may take.
_MODEL_SHARE: Final = 0.75


class InThread:
    """A distiller that computes, and would keep turns waiting on the event loop."""

    def __init__(self, distiller: Distiller) -> None:
        self._distiller = distiller

    async def distil(self, assignment: Assignment) -> Note:
        """See `Distiller`. What has begun is not stopped when its caller gives up."""
        return await asyncio.to_thread(lambda: asyncio.run(_made(self._distiller, assignment)))


class Distillers:
    """Makes the distiller for a session's client: the engine is asked in that client's name."""

    def __init__(self, config: CompressionConfig) -> None:
        """Raises ConfigError for a model that is neither of the words nor an address."""
        self._model = config.compress_model
        self._timeout_s = config.compress_timeout_s
        if self._model not in (EXTRACTIVE, ENGINE) and not self._model.startswith(("http://", "https://")):
            raise ConfigError(
                f"--agentinfer-compress-model: got {self._model!r}, expected {EXTRACTIVE}, {ENGINE} or an address that "
                "begins with http:// or https://"
            )
        self._extractive = InThread(ExtractiveDistiller())
        self.counts = Counts()
        """Of a model's notes, whichever it is."""

    def for_client(self, door: AppDoor, asked: Asked) -> Distiller:
        """The distiller for a job of a session whose client asks like this."""
        if self._model == EXTRACTIVE:
            return self._extractive
        if self._model == ENGINE:

            async def by_engine(messages: Sequence[Any], json_schema: Mapping[str, Any], max_tokens: int) -> str:
                return await self._in_time(door.complete(asked, messages, json_schema, max_tokens))

            return ModelDistiller(by_engine, self._extractive, self.counts)

        async def by_endpoint(messages: Sequence[Any], json_schema: Mapping[str, Any], max_tokens: int) -> str:
            return await self._in_time(self._by_endpoint(messages, json_schema, max_tokens))

        return ModelDistiller(by_endpoint, self._extractive, self.counts)

    async def _in_time(self, answer: Awaitable[str]) -> str:
        # Time is left for the note without the model, which is better than none.
        return await asyncio.wait_for(answer, _MODEL_SHARE * self._timeout_s)

    async def _by_endpoint(self, messages: Sequence[Any], json_schema: Mapping[str, Any], max_tokens: int) -> str:
        import aiohttp

        body = {
            "model": "default",
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": {"name": "note", "schema": dict(json_schema)}},
        }
        url = self._model.rstrip("/") + "/chat/completions"
        async with (
            aiohttp.ClientSession(trust_env=True) as client,
            client.post(url, data=orjson.dumps(body), headers={"content-type": "application/json"}) as response,
        ):
            answer = await response.read()
            try:
                text = orjson.loads(answer)["choices"][0]["message"]["content"]
            except (orjson.JSONDecodeError, LookupError, TypeError):
                text = None
            if response.status != 200 or not isinstance(text, str):
                raise DoorError(f"{url} answered HTTP {response.status}: {answer[:300].decode(errors='replace')}")
            return text


async def _made(distiller: Distiller, assignment: Assignment) -> Note:
    return await distiller.distil(assignment)
