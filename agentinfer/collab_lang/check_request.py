"""The progress check as a chat completion: what is sent to an SGLang engine, and what its answer says.

The request has the messages and tools of the step that is judged, so that its prompt begins with what is in the cache.
The caller adds `model` and whatever marks the request as its own (session, priority).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentinfer.collab_lang import progress
from agentinfer.collab_lang.progress import Judgement
from agentinfer.collab_lang.settings import Check, CollabSettings

# Ways in which TRUE and FALSE may begin, with a space and without one; OpenAI allows at most 20.
_ALTERNATIVES: Final = 12
_VALUE_TAG: Final = "<value>"
# SGLang fills the list up with tokens that the grammar forbids, at the lowest number that float32 has.
_IMPOSSIBLE: Final = -1e30


def check_body(
    messages: Sequence[Mapping[str, Any]],
    reply: Mapping[str, Any],
    settings: CollabSettings,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The check of `reply`, which answered `messages`. Raises ValueError where `settings` have no check."""
    if settings.check is Check.OFF:
        raise ValueError("the check is off; there is nothing to ask")
    is_block = settings.check is Check.BLOCK
    question = progress.QUESTION if is_block else progress.QUESTION_FOR_VALUE
    body: dict[str, Any] = {
        "messages": [*map(dict, messages), *progress.question_messages(reply, question)],
        "temperature": 0,
        "regex": progress.BLOCK_REGEX if is_block else progress.VALUE_REGEX,
        "max_tokens": progress.BLOCK_MAX_TOKENS if is_block else progress.VALUE_MAX_TOKENS,
        "logprobs": True,
        "top_logprobs": _ALTERNATIVES,
        # A model that thinks first would spend the tokens on that; templates that know neither name ignore them.
        "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
        "separate_reasoning": False,
    }
    if tools:
        # Not "none": that takes the tools out of the prompt, and with them the cached prefix.
        body |= {"tools": [*map(dict, tools)], "tool_choice": "auto"}
    return body


def read_answer(body: object, settings: CollabSettings) -> Judgement | None:
    """The judgement in a completion's body; None where it has none, whatever else it is."""
    choices = _field(body, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    text = _field(_field(choice, "message"), "content")
    if not isinstance(text, str):
        return None
    tokens = _field(_field(choice, "logprobs"), "content")
    rows = [each for each in tokens if isinstance(each, Mapping)] if isinstance(tokens, list) else []
    if settings.check is Check.BLOCK:
        return progress.read_block(text, progress.probability_of_true(_alternatives(_value_row(rows))))
    return progress.read_value(text, progress.probability_of_true(_alternatives(rows[0] if rows else None)))


def _value_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The token that the value begins with: the first one after its tag that is more than a space."""
    said = ""
    for row in rows:
        token = row.get("token")
        if not isinstance(token, str):
            return None
        if token.strip() and said.rstrip().endswith(_VALUE_TAG):
            return row
        said += token
    return None


def _alternatives(row: Mapping[str, Any] | None) -> list[tuple[str, float]]:
    """The tokens that could have come at `row`, with their log-probabilities; none where the engine told none."""
    listed = _field(row, "top_logprobs")
    found = [_pair(each) for each in listed] if isinstance(listed, list) else []
    return [each for each in found if each is not None]


def _pair(row: object) -> tuple[str, float] | None:
    token, logprob = _field(row, "token"), _field(row, "logprob")
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        return None
    return (token, float(logprob)) if _IMPOSSIBLE < logprob <= 1.0 else None


def _field(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None
