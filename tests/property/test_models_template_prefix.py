"""An agent's next prompt begins with its last one and the reply as generated: what a prefix cache lives on."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("jinja2")

from hypothesis import given, settings
from hypothesis import strategies as st

from agentinfer.models.catalogue import CATALOGUE, EmbeddedModel, find_model
from tests.template_rendering import render
from tests.unit.test_models_template import SMOLLM2_ORIGINAL

texts = st.text(max_size=12)
contents = st.one_of(
    texts,
    st.none(),
    st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=3),
)
arguments = st.dictionaries(texts, st.one_of(texts, st.integers(), st.none(), st.lists(texts, max_size=2)), max_size=3)
calls = st.builds(
    lambda name, values, as_text: {
        "id": "call",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(values) if as_text else values},
    },
    texts,
    arguments,
    st.booleans(),
)


def message(role: str, content: Any, tool_calls: Any = None) -> dict[str, Any]:
    return {"role": role, "content": content} | ({"tool_calls": tool_calls} if tool_calls is not None else {})


replies = st.builds(message, st.just("assistant"), contents, st.one_of(st.none(), st.lists(calls, max_size=3)))
inputs = st.builds(message, st.sampled_from(["user", "tool", "system", "developer"]), contents)
conversations = st.lists(st.one_of(replies, inputs), min_size=1, max_size=8)
tool_lists = st.one_of(st.none(), st.lists(st.dictionaries(texts, texts, max_size=2), max_size=2))


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
@settings(max_examples=150, deadline=None)
@given(messages=conversations, tools=tool_lists)
def test_longer_conversation_continues_the_prompt(model: EmbeddedModel, messages, tools) -> None:
    template = model.chat_template
    whole = render(template, messages, tools=tools)
    for length in range(1, len(messages) + 1):
        part = render(template, messages[:length], tools=tools)
        assert whole.startswith(part)
        if length < len(messages) and messages[length]["role"] == "assistant":
            prompt = render(template, messages[:length], tools=tools, add_generation_prompt=True)
            assert whole.startswith(prompt)


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
@settings(max_examples=150, deadline=None)
@given(before=conversations, text=texts, values=st.lists(arguments, max_size=2))
def test_generated_reply_sent_back_is_rendered_as_generated(model: EmbeddedModel, before, text, values) -> None:
    blocks = [f'<tool_call>\n{{"name": "f", "arguments": {json.dumps(v)}}}\n</tool_call>' for v in values]
    generated = "\n".join([text, *blocks] if text else blocks)
    tool_calls = [{"function": {"name": "f", "arguments": json.dumps(v)}} for v in values]
    sent_back = [*before, message("assistant", text or None, tool_calls)]
    prompt = render(model.chat_template, before, add_generation_prompt=True)
    after = render(model.chat_template, sent_back)
    end_of_turn = model.end_of_turn or "<|im_end|>"
    assert after.removesuffix("\n" if model.end_of_turn is None else "") == prompt + generated + end_of_turn


@settings(max_examples=200, deadline=None)
@given(
    messages=st.lists(
        st.builds(message, st.sampled_from(["system", "user", "assistant", "tool"]), texts), min_size=0, max_size=6
    ),
    add_generation_prompt=st.booleans(),
)
def test_plain_conversations_render_as_smollm2_s_original(messages, add_generation_prompt) -> None:
    ours, original = (
        render(template, messages, add_generation_prompt=add_generation_prompt)
        for template in (find_model("smollm2-135m").chat_template, SMOLLM2_ORIGINAL)
    )
    assert ours == original
