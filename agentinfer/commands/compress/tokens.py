"""Tokens of recorded prompts: by the embedded model's tokenizer and chat template, or an estimate without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from agentinfer import models
from agentinfer.errors import ModelError
from agentinfer.models.catalogue import find_model
from agentinfer.replay.render import reply_text
from agentinfer.replay.tokens import CHARS_PER_TOKEN, MESSAGE_OVERHEAD_TOKENS, estimate

OpenAIMessage = Mapping[str, Any]
_SYSTEM: OpenAIMessage = {"role": "system", "content": "."}
_MAX_SEEN = 50_000

# (messages, tools, whether a reply is to follow) -> the prompt's text
_Render = Callable[[Sequence[OpenAIMessage], Sequence[OpenAIMessage], bool], str]


@dataclass(frozen=True, slots=True)
class Segment:
    """A message's part of a prompt. Parts with equal `key` are the same tokens."""

    key: bytes
    num_tokens: int


class PromptTokens:
    """Counts, each message once. `source` says by which means, for the record; `is_exact` whether that is the model's.

    A prompt is counted message by message, which is exact for templates that write each message by itself, as those of
    the embedded models do. Messages must not be changed after they were counted.
    """

    def __init__(self, model: str | None = models.DEFAULT_MODEL) -> None:
        """`model`: an embedded model's name; None for the estimate."""
        found = None if model is None else _load(model)
        self._encode: Callable[[str], int] | None = None
        self._render: _Render | None = None
        if found is not None:
            self._encode, self._render = found
        self.is_exact = found is not None
        self.source = (
            f"tokenizer and chat template of {model}"
            if self.is_exact
            else f"estimate, {CHARS_PER_TOKEN} characters a token"
        )
        self._known: dict[bytes, Segment] = {}
        # By identity, with the object itself so that its id is not given to another; a session's turns share messages.
        self._seen: dict[int, tuple[OpenAIMessage, Segment]] = {}
        self._around = self._tokens_of([_SYSTEM], (), False)
        self.reply_tokens = self._tokens_of([_SYSTEM], (), True) - self._around if self.is_exact else 0
        """What ends every prompt to have the model reply."""

    def segments(self, messages: Sequence[OpenAIMessage], tools: Sequence[OpenAIMessage] = ()) -> list[Segment]:
        """The parts of a prompt, a message each; the first has the tools and whatever the template begins with."""
        return [self._segment(message, index == 0, tools) for index, message in enumerate(messages)]

    def prompt(self, messages: Sequence[OpenAIMessage], tools: Sequence[OpenAIMessage] = ()) -> int:
        """Tokens of the whole prompt."""
        return sum(each.num_tokens for each in self.segments(messages, tools)) + self.reply_tokens

    def text(self, text: str) -> int:
        """Tokens of a text by itself."""
        return estimate(text) if self._encode is None else self._encode(text)

    def _segment(self, message: OpenAIMessage, is_first: bool, tools: Sequence[OpenAIMessage]) -> Segment:
        seen = None if is_first else self._seen.get(id(message))
        if seen is not None:
            return seen[1]
        shown = orjson.dumps([message, tools if is_first else (), is_first], option=orjson.OPT_NON_STR_KEYS)
        key = blake2b(shown, digest_size=16).digest()
        if key not in self._known:
            if is_first:
                count = self._tokens_of([message], tools, False)
            else:
                count = self._tokens_of([_SYSTEM, message], (), False) - self._around
            self._known[key] = Segment(key, count)
        if not is_first:
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen[id(message)] = (message, self._known[key])
        return self._known[key]

    def _tokens_of(self, messages: Sequence[OpenAIMessage], tools: Sequence[OpenAIMessage], replies: bool) -> int:
        if self._encode is None or self._render is None:
            schemas = sum(estimate(json.dumps(tool)) for tool in tools)
            return schemas + sum(estimate(reply_text(message)) + MESSAGE_OVERHEAD_TOKENS for message in messages)
        return self._encode(self._render(messages, tools, replies))


def _load(model: str) -> tuple[Callable[[str], int], _Render] | None:
    """None where the model's packages, or what reads its tokenizer and template, are not installed."""
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(Path(models.prepare(model)) / "tokenizer.json"))
    except (ImportError, ModelError):
        return None
    # As transformers sets up a template's environment, with its own `tojson`, which escapes nothing.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(find_model(model).chat_template)

    def encode(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    def render(messages: Sequence[OpenAIMessage], tools: Sequence[OpenAIMessage], replies: bool) -> str:
        shown = [_with_parsed_arguments(message) for message in messages]
        return template.render(messages=shown, tools=list(tools) or None, add_generation_prompt=replies, bos_token="")

    return encode, render


def _with_parsed_arguments(message: OpenAIMessage) -> OpenAIMessage:
    """SGLang hands a template the arguments of a tool call as an object, not as JSON text."""
    calls = []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        try:
            arguments = orjson.loads(function["arguments"])
        except (orjson.JSONDecodeError, TypeError):
            arguments = function["arguments"]
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return {**message, "tool_calls": calls} if calls else message
