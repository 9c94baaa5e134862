"""Reading a request body: from the five generation APIs to one `Conversation`.

Nothing here raises on a malformed body: the engine answers those with its own HTTP 400, and until then the best
reading of what is there serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

from agentinfer.messages.content import (
    anthropic_messages,
    chat_message,
    merged_output_items,
    optional_text,
    read_content,
    read_role,
    token_bytes,
    utf8,
)
from agentinfer.messages.model import EMPTY_DIGEST, Api, Message, chained, json_digest

MAX_MESSAGES: Final = 16_384
"""Longer message lists are not followed: no context window holds them, and the event loop must not walk them."""


@dataclass(frozen=True)
class Conversation:
    """What one generation request says.

    `prompt` holds the bytes of a text or token prompt (completions and /generate), None for APIs with messages; two
    prompts compare by `prompt` only when they have the same `prompt_kind`, and with `echo` the answer repeats it. With
    `previous_response_id` set, `messages` are only those after that response; the server holds the rest.
    """

    api: Api
    messages: tuple[Message, ...]
    tools_digest: bytes = EMPTY_DIGEST
    model: str | None = None
    previous_response_id: str | None = None
    prompt: bytes | None = field(default=None, repr=False)
    prompt_kind: Literal["text", "token_ids"] | None = None
    echo: bool = False
    tools: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @staticmethod
    def from_body(path: str, body: Mapping[str, Any]) -> Conversation | None:
        """The conversation in `body`, posted to `path`; None where there is none that we follow.

        Not followed: other paths, batches of prompts, embeddings as input, and message lists beyond `MAX_MESSAGES`.
        """
        reader = _READERS.get(path)
        return reader(body) if reader is not None and isinstance(body, Mapping) else None

    @cached_property
    def chain(self) -> tuple[bytes, ...]:
        """`chain[i]` is the digest of messages [0, i]: equal chains mean equal prefixes."""
        digests = []
        link = EMPTY_DIGEST
        for message in self.messages:
            link = chained(link, message.digest)
            digests.append(link)
        return tuple(digests)


def _chat(body: Mapping[str, Any]) -> Conversation | None:
    items = _message_list(body.get("messages"))
    if items is None:
        return None
    return _conversation("chat", body, [chat_message(item) for item in items])


def _completions(body: Mapping[str, Any]) -> Conversation | None:
    return _prompt_conversation("completions", body, body.get("prompt"))


def _generate(body: Mapping[str, Any]) -> Conversation | None:
    if body.get("text") is not None:
        return _prompt_conversation("generate", body, body.get("text"))
    return _prompt_conversation("generate", body, body.get("input_ids"))


def _prompt_conversation(api: Api, body: Mapping[str, Any], prompt: object) -> Conversation | None:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        if api == "generate":
            return None  # a batch of one, answered by a list
        prompt = prompt[0]
    model = optional_text(body.get("model"))
    if isinstance(prompt, str):
        message = Message(role="user", text=prompt)
        echo = api == "completions" and body.get("echo") is True
        return Conversation(api, (message,), model=model, prompt=utf8(prompt), prompt_kind="text", echo=echo)
    if not isinstance(prompt, list) or not prompt:
        return None
    packed = token_bytes(prompt)
    if packed is None:
        return None
    message = Message(
        role="user", text="", attachments=(json_digest(prompt),), raw={"role": "user", "input_ids": prompt}
    )
    return Conversation(api, (message,), model=model, prompt=packed, prompt_kind="token_ids")


def _responses(body: Mapping[str, Any]) -> Conversation | None:
    messages: list[Message] = []
    instructions = body.get("instructions")
    if isinstance(instructions, str) and instructions:
        messages.append(Message(role="system", text=instructions))
    given = body.get("input")
    if isinstance(given, str):
        messages.append(Message(role="user", text=given))
    else:
        items = _message_list(given)
        if items is None:
            return None
        messages.extend(merged_output_items(items))
    return _conversation(
        "responses", body, messages, previous_response_id=optional_text(body.get("previous_response_id"))
    )


def _anthropic(body: Mapping[str, Any]) -> Conversation | None:
    items = _message_list(body.get("messages"))
    if items is None:
        return None
    messages: list[Message] = []
    system, _, attachments = read_content(body.get("system"))
    if system or attachments:
        messages.append(Message(role="system", text=system, attachments=attachments))
    for item in items:
        messages.extend(anthropic_messages(read_role(item.get("role")), item.get("content")))
    return _conversation("anthropic", body, messages)


def _conversation(
    api: Api, body: Mapping[str, Any], messages: list[Message], previous_response_id: str | None = None
) -> Conversation:
    tools = body.get("tools")
    tools = tools if isinstance(tools, list) and tools else []
    return Conversation(
        api=api,
        messages=tuple(messages),
        tools_digest=json_digest(tools) if tools else EMPTY_DIGEST,
        model=optional_text(body.get("model")),
        previous_response_id=previous_response_id,
        tools=tuple(tools),
    )


def _message_list(items: object) -> list[Mapping[str, Any]] | None:
    if not isinstance(items, list) or not 0 < len(items) <= MAX_MESSAGES:
        return None
    return items if all(isinstance(item, Mapping) for item in items) else None


_READERS: Final[dict[str, Callable[[Mapping[str, Any]], Conversation | None]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/messages": _anthropic,
    "/generate": _generate,
}

PATHS: Final = tuple(_READERS)
"""The request paths whose conversations are followed."""
