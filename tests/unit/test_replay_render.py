"""The forced text is what the chat templates render for the recorded reply, so that each prompt extends the last."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import orjson
import pytest

from agentinfer.models.catalogue import find_model
from agentinfer.replay import Session, read_trace
from agentinfer.replay.render import reply_text
from agentinfer.replay.session import clean_message
from tests.replay_fakes import a_session

MODELS = ("smollm2-135m", "gemma3-270m")


def template(model: str) -> jinja2.Template:
    """An embedded model's template, in the environment that transformers gives a chat template."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(find_model(model).chat_template)


def as_sglang_passes_it(message: dict[str, Any]) -> dict[str, Any]:
    """SGLang parses the arguments of tool calls before it renders."""
    calls = [
        {**c, "function": {**c["function"], "arguments": orjson.loads(c["function"]["arguments"])}}
        for c in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else message


def assert_prompts_extend(chat: jinja2.Template, session: Session) -> None:
    prompts = [
        chat.render(
            messages=[as_sglang_passes_it(m) for m in turn.prompt],
            tools=list(session.tool_schemas) or None,
            add_generation_prompt=True,
        )
        for turn in session.turns
    ]
    for turn, (before, after) in zip(session.turns, itertools.pairwise(prompts), strict=False):
        assert after.startswith(before + reply_text(turn.reply))


def awkward(content: Any, *arguments: str) -> Session:
    """A session whose first reply is made of these."""
    session = a_session("s", 2)
    calls = [{"function": {"name": 'na"me é', "arguments": text}} for text in arguments]
    reply = clean_message({"role": "assistant", "content": content, "tool_calls": calls}, "test", "reply")
    first, second = session.turns
    prompt = (*first.prompt, reply, *second.prompt[3:])
    turns = (type(first)(0, first.prompt, reply), type(first)(1, prompt, second.reply))
    return Session(id="s", task="s", run="", source="test", turns=turns)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("content", "arguments"),
    [
        ("text only", ()),
        ("", ('{"a": 1}',)),
        (None, ('{"a":1,"b":[true,null]}', "{}")),
        ("both\n", ('{"quote": "\\"<&>\\u00e9\\n"}', '{"x": 1e3, "y": 0.10, "z": 12345678901234567890}')),
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], ('{"emoji": "\\ud83d\\ude00"}',)),
        ("invalid arguments are kept as a field", ("ls -l",)),
    ],
    ids=["text", "call", "calls", "text and calls", "parts", "invalid"],
)
def test_awkward_replies_extend_the_prompt(content: Any, arguments: tuple[str, ...], model: str) -> None:
    assert_prompts_extend(template(model), awkward(content, *arguments))


def test_reply_text_is_content_then_hermes_blocks() -> None:
    reply = awkward("look", '{"a":1}', '{"b":"é"}').turns[0].reply
    name = '"na\\"me é"'
    assert reply_text(reply) == (
        f'look\n<tool_call>\n{{"name": {name}, "arguments": {{"a": 1}}}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": {name}, "arguments": {{"b": "é"}}}}\n</tool_call>'
    )


@pytest.mark.skipif("AGENTINFER_TRACES" not in os.environ, reason="AGENTINFER_TRACES names no folder of traces")
@pytest.mark.parametrize("name", ["swe_dev", "swe_glm45", "airline"])
def test_recorded_replies_extend_their_prompts(name: str) -> None:
    chat = template(MODELS[0])
    trace = read_trace(str(Path(os.environ["AGENTINFER_TRACES"]) / f"{name}.jsonl.xz"))
    for session in trace.sessions[:6]:
        assert_prompts_extend(chat, session)
