"""What a request and a reply say, in one form for all five APIs: messages, tool calls, and their digests.

A digest covers what ends up in the prompt as far as a client decides it: role, text, tool calls, the id a tool result
answers, and other content parts by hash. It leaves out what clients add or drop freely between turns without meaning to
change the conversation: empty against absent content, one string against a list of text parts, reasoning that is sent
beside the text, cache markers, and null fields.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, Literal

import orjson

Api = Literal["chat", "completions", "responses", "anthropic", "generate"]

DIGEST_BYTES: Final = 16
EMPTY_DIGEST: Final = bytes(DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool. `arguments_text` is as it was written, compact JSON where it came as an object."""

    id: str | None
    name: str
    arguments_text: str


@dataclass(frozen=True)
class Message:
    """One message. `attachments` are digests of the parts that are not text; `raw` is the OpenAI message as it came."""

    role: str
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning_text: str = ""
    attachments: tuple[bytes, ...] = ()
    raw: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that are equal exactly when two messages say the same (see the module's first lines)."""
        texts = [self.role, self.text, self.tool_call_id or ""]
        for call in self.tool_calls:
            texts += (call.id or "", call.name, call.arguments_text)
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        parts += self.attachments
        # The lengths go first, so that no two different sequences of parts feed the same bytes.
        hasher = blake2b(array("q", (len(self.tool_calls), *map(len, parts))), digest_size=DIGEST_BYTES)
        for part in parts:
            hasher.update(part)
        return hasher.digest()

    @cached_property
    def size_bytes(self) -> int:
        """About what holding this message costs; texts are counted as one byte a character."""
        size = 200 + len(self.text) + len(self.reasoning_text) + 16 * len(self.attachments)
        size += sum(150 + len(call.name) + len(call.arguments_text) for call in self.tool_calls)
        return size + (_attached_bytes(self.raw) if self.attachments else 0)

    def as_openai(self) -> dict[str, Any]:
        """The message as a chat completions request carries it; the client's own object where it sent one."""
        if self.raw is not None:
            return dict(self.raw)
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.reasoning_text:
            message["reasoning_content"] = self.reasoning_text
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_text}}
                for call in self.tool_calls
            ]
            message["content"] = self.text or None
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


def chained(link: bytes, digest: bytes) -> bytes:
    """The digest of a prefix `link` extended by a message's `digest`."""
    return blake2b(digest, key=link, digest_size=DIGEST_BYTES).digest()


def json_text(value: object) -> str:
    """Compact JSON of a parsed value, keys in the order they came; `repr` for what JSON cannot say."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def json_digest(value: object) -> bytes:
    """16 bytes over `json_text`."""
    return blake2b(json_text(value).encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def canonical_digest(value: object) -> bytes:
    """16 bytes over a parsed JSON value that do not depend on the order of keys."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, RecursionError):
        text = repr(value).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=DIGEST_BYTES).digest()


def _attached_bytes(value: object) -> int:
    total = 0
    pending: list[object] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, Mapping):
            pending.extend(item.values())
        elif isinstance(item, list):
            if item and isinstance(item[0], int):
                total += 40 * len(item)  # token ids: an object and a reference each
            else:
                pending.extend(item)
    return total
