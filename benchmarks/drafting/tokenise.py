"""A trace as tokens: what an engine with the embedded model sees as prompt and emits as reply, turn by turn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from agentinfer import models
from agentinfer.replay.render import reply_text
from agentinfer.replay.session import Message, Session
from agentinfer.replay.traces import read_trace
from benchmarks.drafting.drafter import Tokens
from benchmarks.drafting.sessions import Source, TokenSession, TokenTrace, TokenTurn

MODEL = "smollm2-135m"


def tokenise(trace_name: str, limit: int | None = None) -> TokenTrace:
    """Read and tokenise the first `limit` sessions. Raises TraceError where the file is not a trace."""
    trace = read_trace(trace_name)
    encoder = ChatEncoder(models.prepare(MODEL))
    sessions = tuple(_tokenised(session, encoder) for session in trace.sessions[:limit])
    return TokenTrace(Source(Path(trace_name).name, trace.sha256, MODEL, encoder.end_of_turn), sessions)


class ChatEncoder:
    """The model's chat template and tokenizer.

    A tokenizer splits its text at special tokens first, so the parts between them are encoded once and remembered: a
    turn's prompt repeats almost all of the one before.
    """

    def __init__(self, model: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        # Nothing is run here, so a message longer than the model's window is no reason to warn.
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(model, model_max_length=2**31)
        self._special: dict[str, int] = {
            token.content: number
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if not (token.lstrip or token.rstrip or token.single_word)
        }
        self._split = re.compile("(" + "|".join(map(re.escape, self._special)) + ")")
        self._known: dict[str, list[int]] = {}
        self.end_of_turn: int = self._tokenizer.convert_tokens_to_ids("<|im_end|>")

    def prompt(self, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...]) -> Tokens:
        text = self._tokenizer.apply_chat_template(
            [_with_parsed_arguments(message) for message in messages],
            tools=list(tools) or None,
            add_generation_prompt=True,
            tokenize=False,
        )
        return self.encode(text)

    def encode(self, text: str) -> Tokens:
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                if part not in self._known:
                    self._known[part] = self._tokenizer.encode(part, add_special_tokens=False)
                ids += self._known[part]
        return np.array(ids, dtype=np.int32)


def _tokenised(session: Session, encoder: ChatEncoder) -> TokenSession:
    turns = []
    context = np.empty(0, np.int32)
    for turn in session.turns:
        prompt = encoder.prompt(turn.prompt, session.tool_schemas)
        reply = np.append(encoder.encode(reply_text(turn.reply)), np.int32(encoder.end_of_turn))
        kept = _shared(context, prompt)
        turns.append(TokenTurn(kept, prompt[kept:], reply))
        context = np.concatenate([prompt, reply])
    return TokenSession(session.id, session.task, tuple(turns))


def _shared(first: Tokens, second: Tokens) -> int:
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length


def _with_parsed_arguments(message: Message) -> Message:
    """SGLang hands a template the arguments of a tool call as an object, not as JSON text."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        calls.append({**call, "function": {**function, "arguments": orjson.loads(function["arguments"])}})
    return {**message, "tool_calls": calls}
