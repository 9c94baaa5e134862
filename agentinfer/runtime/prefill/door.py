"""What a request's prompt is in tokens: SGLang's app is asked in this process, beneath our middleware.

It is asked as the client that wants the prompt, so that whatever decides the prompt of that client's turn does so here
too, and the request is stopped at the engine's door (`engine.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from agentinfer.runtime.exchange import App, Message, Scope
from agentinfer.runtime.prefill.engine import Prompt, Wanted, wanted_prompt
from agentinfer.runtime.prefill.warming import common_length

CHAT_PATH: Final = "/v1/chat/completions"
# Of the client's headers, what decides whether and as whom its requests are served.
_KEPT_HEADERS: Final = (b"authorization", b"host", b"x-smg-routing-key", b"x-data-parallel-rank")
# Of its scope, what is not of the route that it came by.
_KEPT_SCOPE: Final = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "root_path",
    "headers",
    "client",
    "server",
    "app",
)
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
    """The app gave no answer that can be used. `status` is its HTTP status."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


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


class PromptDoor:
    """The app that our middleware wraps."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def prompt(self, asked: Asked, messages: Sequence[Any]) -> Prompt:
        """What every prompt has in common that goes on from these messages, as their client sends them.

        Not the prompt of the messages themselves where the last is the model's: SGLang makes a user's of it. Where it
        is another's, the model answers next or one more result comes in. Raises DoorError.
        """
        if messages[-1].get("role") == "assistant":
            first, second = [await self.exact(asked, [*messages, _next(messages[-1], text)]) for text in _NEXT_TEXTS]
        else:
            first = await self.exact(asked, messages)
            try:
                second = await self.exact(asked, [*messages, _next(messages[-1], _NEXT_TEXTS[0])])
            except DoorError:
                return first  # a template that wants the model to answer now
        return replace(first, ids=first.ids[: common_length(first.ids, second.ids)])

    async def exact(self, asked: Asked, messages: Sequence[Any]) -> Prompt:
        """The prompt of a chat request with these messages. Raises DoorError."""
        wanted = Wanted()
        token = wanted_prompt.set(wanted)
        try:
            status, answer = await self.post(asked.scope, {**asked.fields, "messages": list(messages), "stream": False})
        finally:
            wanted_prompt.reset(token)
        if wanted.prompt is None:
            raise DoorError(f"{wanted.why_not}: {_told(answer)}", status)
        return wanted.prompt

    async def post(self, scope: Scope, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """The app's HTTP status and answer to a request of the client whose scope this is."""
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


def chat_scope(scope: Scope) -> Scope:
    """The scope of a chat request by the client whose request, to whatever route, has `scope`."""
    kept = {name: scope[name] for name in _KEPT_SCOPE if name in scope}
    return {**kept, "path": CHAT_PATH, "raw_path": CHAT_PATH.encode(), "query_string": b""}


def _told(answer: bytes) -> str:
    """What SGLang says is wrong, in the shape of its chat route, or the beginning of whatever it says."""
    try:
        told = orjson.loads(answer)["message"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        told = None
    return (told if isinstance(told, str) else answer.decode(errors="replace"))[:300]


def _next(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A message that could follow: a tool's result where one was called."""
    for call in message.get("tool_calls") or ():
        return {"role": "tool", "tool_call_id": call.get("id"), "content": text}
    return {"role": "user", "content": text}
