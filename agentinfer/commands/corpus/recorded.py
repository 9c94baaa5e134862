"""Recorded sessions as contexts: rendered by the model's chat template and tokenised as its server would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from agentinfer import models
from agentinfer.errors import AgentInferError
from agentinfer.replay.render import reply_text
from agentinfer.replay.session import Message, Session, text_of
from agentinfer.spec_sam.store import tokenizer_fingerprint
from agentinfer.spec_sam.store.payloads import Tokens


class ChatTokenizer(Protocol):
    """A model's template and tokenizer."""

    def render(self, messages: list[Message], tools: list[dict[str, Any]], is_prompt: bool) -> str:
        """`is_prompt`: ends where the assistant is to speak."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    turn: int
    prompt: Tokens
    response: Tokens


class ModelTokenizer:
    """Of a model folder or ``embedded:NAME``. Raises AgentInferError when there is none or transformers is missing."""

    def __init__(self, model: str) -> None:
        directory = Path(models.resolve(model))
        self.fingerprint = tokenizer_fingerprint(directory)
        try:
            from transformers import AutoTokenizer
        except ModuleNotFoundError:
            raise AgentInferError("rendering chat templates needs transformers: pip install transformers") from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        except (OSError, ValueError) as error:
            raise AgentInferError(f"{directory}: its tokenizer cannot be loaded: {error}") from error

    def render(self, messages: list[Message], tools: list[dict[str, Any]], is_prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=is_prompt
            )
        except Exception as error:  # whatever a template raises
            raise AgentInferError(f"the model's chat template refuses these messages: {error}") from error
        return str(text)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def turns(session: Session, tokenizer: ChatTokenizer) -> Iterator[RecordedTurn]:
    """Each turn as the engine saw it. What a prompt adds to the text of the turn before is tokenised on its own, as
    the engine's prefix cache has it: tokens of earlier turns stay what they were."""
    tools = list(session.tool_schemas)
    text, tokens = "", np.empty(0, np.int32)
    for turn in session.turns:
        messages = [_for_template(message) for message in turn.prompt]
        prompt_text = tokenizer.render(messages, tools, is_prompt=True)
        if not prompt_text.startswith(text):
            text, tokens = "", np.empty(0, np.int32)
        prompt = _extended(tokens, prompt_text[len(text) :], tokenizer.encode)
        whole = tokenizer.render([*messages, _for_template(turn.reply)], tools, is_prompt=False)
        said = whole[len(prompt_text) :] if whole.startswith(prompt_text) else reply_text(turn.reply)
        response = _extended(np.empty(0, np.int32), said, tokenizer.encode)
        yield RecordedTurn(turn.index, prompt, response)
        text, tokens = prompt_text + said, np.concatenate([prompt, response])


def _extended(tokens: Tokens, text: str, encode: Callable[[str], list[int]]) -> Tokens:
    return np.concatenate([tokens, np.array(encode(text), np.int32)]) if text else tokens


def _for_template(message: Message) -> Message:
    """Content as text and call arguments as objects: what SGLang hands to a template."""
    changed = {**message, "content": text_of(message)}
    if calls := message.get("tool_calls"):
        changed["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": orjson.loads(call["function"]["arguments"])}}
            for call in calls
        ]
    return changed
