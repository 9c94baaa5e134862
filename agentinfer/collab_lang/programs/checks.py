"""The progress check on SGLang's own `/generate`: what is asked for, and what the answer says.

The prompt is that of the program with a question after it, so all but the question is in the cache. The probability
of TRUE against FALSE is that of the whole words as the model's own tokens, in one request without a grammar: under one,
the first token of a word stands for other spellings as well, and says something else than the word does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from sglang.lang.ir import SglSamplingParams

from agentinfer.collab_lang import progress
from agentinfer.collab_lang.programs.conversation import Written
from agentinfer.collab_lang.programs.engine import Engine
from agentinfer.collab_lang.programs.rendering import Refusal
from agentinfer.collab_lang.progress import Judgement
from agentinfer.collab_lang.settings import Check

_WORDS: Final = ("TRUE", "FALSE")
_VALUE_TAG: Final = "<value>"


def judge(engine: Engine, what: Written, kind: Check, hints: Mapping[str, Any]) -> Judgement | None:
    """What the engine's model says of the last step of `what`. Raises EngineFailure and Refusal."""
    if kind is Check.VERDICT:
        asked = what.followed_by("user", progress.QUESTION_FOR_VALUE)
        p_true = _p_true(engine, asked, _WORDS, hints)
        if p_true is not None:
            return Judgement(p_true >= 0.5, p_true)
        return progress.read_value(_answer(engine, asked, progress.VALUE_REGEX, progress.VALUE_MAX_TOKENS, hints))
    asked = what.followed_by("user", progress.QUESTION)
    block = _answer(engine, asked, progress.BLOCK_REGEX, progress.BLOCK_MAX_TOKENS, hints)
    before_value, tag, _ = block.partition(_VALUE_TAG)
    if not tag:
        return None
    begun = Written(asked.messages, asked.role, asked.begun + before_value + tag)
    return progress.read_block(block, _p_true(engine, begun, _WORDS, hints))


def _answer(engine: Engine, asked: Written, regex: str, max_tokens: int, hints: Mapping[str, Any]) -> str:
    params = SglSamplingParams(max_new_tokens=max_tokens, temperature=0.0, regex=regex)
    text, _ = engine.generate(engine.turn(asked, hints, is_thinking=False), params)
    return str(text)


def _p_true(engine: Engine, asked: Written, words: tuple[str, ...], hints: Mapping[str, Any]) -> float | None:
    """The probability of the first word against the second; None where the engine shows no tokens of its prompts."""
    try:
        prompt = engine.renderer().in_tokens(engine.renderer().prompt(asked, is_thinking=False))
        ids = [engine.renderer().word(each) for each in words]
    except Refusal:
        return None
    first, second = engine.score(prompt, ids, hints)
    return 1.0 / (1.0 + math.exp(min(700.0, second - first)))
