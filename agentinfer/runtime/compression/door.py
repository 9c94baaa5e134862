"""Asking SGLang's app in this process, beneath our middleware, in the name of a session's own client."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from agentinfer.runtime.exchange import App, Message, Scope
from agentinfer.runtime.prefill.engine import Prompt, Wanted, wanted_prompt
from agentinfer.runtime.prefill.warming import common_length

# Of the client's headers, what decides whether and as whom its requests are served.
_KEPT_HEADERS: Final = (b"authorization", b"host", b"x-smg-routing-key", b"x-data-parallel-rank")
# Of a request's body, what only concerns the answer and would be in the way of a short one.
_LEFT_OUT: Final = frozenset(
    (
        "messages",
        "stream",
        "stream_options",
        "n",
        "logprobs",
        "top_logprobs",
        "agentinfer",
        "rid",
        "return_token_ids",
        "return_meta_info",
        "return_prompt_token_ids",
        "return_input_ids_in_sglext",
        "return_output_ids_in_sglext",
        "return_hidden_states",
        "return_routed_experts",
        "background",
        "priority",
    )
)
# Two messages that could come next, and have not even a first character in common.
_NEXT_TEXTS: Final = ("done", "0")


class DoorError(Exception):
    """The app gave no answer that can be used."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How a client asks: its request without the messages, and what of the HTTP scope its rights hang on."""

    fields: Mapping[str, Any] = field(repr=False)
    scope: Scope = field(repr=False)

    @staticmethod
    def of(scope: Scope, body: Mapping[str, Any]) -> Asked:
        """Reads a client's request; keeps no reference to its messages or its connection."""
        kept = {name: value for name, value in scope.items() if name not in ("extensions", "state")}
        kept["headers"] = [pair for pair in scope["headers"] if pair[0] in _KEPT_HEADERS]
        return Asked({name: value for name, value in body.items() if name not in _LEFT_OUT}, kept)


class AppDoor:
    """The app that our middleware wraps."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def prompt(self, asked: Asked, messages: Sequence[Any]) -> Prompt:
        """What every prompt has in common that goes on from these messages, as their client sends them.

        Not the prompt of the messages themselves: where the last is the model's, SGLang makes a user's of it. Raises
        DoorError.
        """
        first, second = [await self._prompt(asked, [*messages, _next(messages[-1], text)]) for text in _NEXT_TEXTS]
        return replace(first, ids=first.ids[: common_length(first.ids, second.ids)])

    async def complete(
        self, asked: Asked, messages: Sequence[Any], json_schema: Mapping[str, Any], max_tokens: int
    ) -> str:
        """What the served model answers, held to a JSON schema. Raises DoorError."""
        body = {
            "model": asked.fields.get("model"),
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": {"name": "note", "schema": json_schema}},
        }
        status, answer = await self._post(asked.scope, body)
        try:
            text = orjson.loads(answer)["choices"][0]["message"]["content"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            text = None
        if status != 200 or not isinstance(text, str):
            raise DoorError(f"the engine answered HTTP {status}: {answer[:300].decode(errors='replace')}")
        return text

    async def _prompt(self, asked: Asked, messages: Sequence[Any]) -> Prompt:
        wanted = Wanted()
        token = wanted_prompt.set(wanted)
        try:
            _, answer = await self._post(asked.scope, {**asked.fields, "messages": list(messages), "stream": False})
        finally:
            wanted_prompt.reset(token)
        if wanted.prompt is None:
            raise DoorError(f"{wanted.why_not}: {answer[:300].decode(errors='replace')}")
        return wanted.prompt

    async def _post(self, scope: Scope, body: Mapping[str, Any]) -> tuple[int, bytes]:
        raw = orjson.dumps(body)
        own = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
        inner = {**scope, "headers": [*scope["headers"], *own], "state": {}, "extensions": {}}
        incoming: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]
        status, answer = 0, bytearray()

        async def receive() -> Message:
            if not incoming:
                await asyncio.Event().wait()  # a client that stays until it has its answer
            return incoming.pop()

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                answer.extend(message.get("body", b""))

        await self._app(inner, receive, send)
        return status, bytes(answer)


def _next(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A message that could follow: a tool's result where one was called."""
    for call in message.get("tool_calls") or ():
        return {"role": "tool", "tool_call_id": call.get("id"), "content": text}
    return {"role": "user", "content": text}
