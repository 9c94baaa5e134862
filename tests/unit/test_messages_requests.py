"""Request bodies of five APIs become the same conversation wherever they say the same."""

from __future__ import annotations

import time

import pytest

from agentinfer.messages import MAX_MESSAGES, Conversation, Message, ToolCall
from tests.agent_sessions import SYSTEM, assistant, call, chat, tool, user

TOOLS = [{"type": "function", "function": {"name": "bash"}}]


def read(path, **body):
    return Conversation.from_body(path, body)


def test_chat_message_fields():
    conversation = chat(
        SYSTEM, user("a"), assistant("b", call("c1", x=1)), tool("c1", "out"), model="m", tools=TOOLS, temperature=0
    )
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "tool"]
    assert conversation.messages[2].tool_calls == (ToolCall("c1", "bash", '{"x": 1}'),)
    assert conversation.messages[3].tool_call_id == "c1"
    assert (conversation.api, conversation.model) == ("chat", "m")
    assert conversation.tools_digest != chat(SYSTEM).tools_digest


SAME = [
    ({"role": "user", "content": "ab"}, {"role": "User", "content": [{"type": "text", "text": "ab"}]}),
    (
        {"role": "user", "content": "ab"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ),
    (assistant("", call("c")), {"role": "assistant", "content": None, "tool_calls": [call("c")]}),
    (
        assistant("a"),
        {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "tool_calls": None, "audio": None},
    ),
    (assistant("a"), {"role": "assistant", "content": "a", "reasoning_content": "because"}),
    (
        {"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
        {"role": "system", "content": "s"},
    ),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=["parts", "split", "null", "extras", "reasoning", "cache_control"])
def test_clients_may_write_a_message_differently(one, other):
    assert chat(one).messages[0].digest == chat(other).messages[0].digest


DIFFERENT = [
    (user("a"), user("b")),
    (user("a"), assistant("a")),
    (user("ab"), {"role": "user", "content": "ab", "tool_call_id": "c"}),
    (assistant("", call("c", x=1)), assistant("", call("c", x=2))),
    (assistant("", call("c")), assistant("", call("d"))),
    (assistant("", call("c"), call("d")), assistant("", call("c"))),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:a"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:b"}}]},
    ),
    (assistant("[c] bash", call("", "x")), assistant("", call("c", "bashx"))),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_messages_that_differ_have_different_digests(one, other):
    assert chat(one).messages[0].digest != chat(other).messages[0].digest


def test_chain_is_equal_exactly_up_to_the_first_difference():
    one = chat(SYSTEM, user("a"), assistant("b"), user("c")).chain
    other = chat(SYSTEM, user("a"), assistant("x"), user("c")).chain
    assert one[:2] == other[:2]
    assert one[2] != other[2]
    assert one[3] != other[3]


def test_chat_messages_come_back_as_the_client_wrote_them():
    body = {"role": "assistant", "content": None, "tool_calls": [call("c")], "name": "n"}
    assert chat(body).messages[0].as_openai() == body


def test_anthropic_blocks_become_openai_messages():
    conversation = read(
        "/v1/messages",
        model="m",
        system=[{"type": "text", "text": "You are careful.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "go"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "bash", "input": {"command": "ls"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a.py"}]},
                    {"type": "text", "text": "go on"},
                ],
            },
        ],
    )
    assert [message.as_openai() for message in conversation.messages] == [
        {"role": "system", "content": "You are careful."},
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "bash", "arguments": '{"command":"ls"}'}}
            ],
        },
        {"role": "tool", "content": "a.py", "tool_call_id": "t1"},
        {"role": "user", "content": "go on"},
    ]


def test_anthropic_text_before_a_tool_result_stays_before_it():
    blocks = [{"type": "text", "text": "see"}, {"type": "tool_result", "tool_use_id": "t", "content": "out"}]
    conversation = read("/v1/messages", messages=[{"role": "user", "content": blocks}])
    assert [(message.role, message.text) for message in conversation.messages] == [("user", "see"), ("tool", "out")]


def test_responses_items_of_one_assistant_turn_become_one_message():
    conversation = read(
        "/v1/responses",
        instructions="Be careful.",
        previous_response_id="resp_1",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "go"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "bash", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
        ],
    )
    assert conversation.previous_response_id == "resp_1"
    assert list(conversation.messages) == [
        Message("system", "Be careful."),
        Message("user", "go"),
        Message("assistant", "I look.", (ToolCall("c1", "bash", "{}"),), reasoning_text="hm"),
        Message("tool", "a.py", tool_call_id="c1"),
    ]


def test_text_and_token_prompts():
    text = read("/v1/completions", prompt="a\u00e9", model="m")
    assert (text.prompt, text.prompt_kind, text.messages[0].text) == (b"a\xc3\xa9", "text", "a\u00e9")
    assert read("/v1/completions", prompt=["one"]).prompt == b"one"
    tokens = read("/generate", input_ids=[1, 2])
    assert (tokens.prompt, tokens.prompt_kind) == ((1).to_bytes(8, "little") + (2).to_bytes(8, "little"), "token_ids")
    assert tokens.messages[0].as_openai() == {"role": "user", "input_ids": [1, 2]}
    assert read("/v1/completions", prompt=[1, 2]).prompt == tokens.prompt


def test_what_a_message_holds_is_counted():
    image = {"type": "image_url", "image_url": {"url": "data:" + "x" * 10_000}}
    assert chat({"role": "user", "content": [image]}).messages[0].size_bytes > 10_000
    assert read("/generate", input_ids=list(range(1000))).messages[0].size_bytes > 36_000
    assert chat(user("x" * 500)).messages[0].size_bytes == 700


NOT_FOLLOWED = [
    ("/v1/embeddings", {"input": "a"}),
    ("/v1/chat/completions", {}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": "hello"}),
    ("/v1/chat/completions", {"messages": [user("a"), "b"]}),
    ("/v1/chat/completions", {"messages": [user("a")] * (MAX_MESSAGES + 1)}),
    ("/v1/completions", {"prompt": ["a", "b"]}),
    ("/v1/completions", {"prompt": [[1], [2]]}),
    ("/v1/completions", {"prompt": []}),
    ("/v1/completions", {"prompt": [1, "a"]}),
    ("/v1/completions", {"prompt": [1 << 70]}),
    ("/v1/responses", {"input": None}),
    ("/v1/messages", {"system": "a"}),
    ("/generate", {"text": ["a", "b"]}),
    ("/generate", {"text": ["a"]}),
    ("/generate", {"input_ids": [[1, 2]]}),
    ("/generate", {"input_embeds": [[0.1]]}),
    ("/generate", []),
]


@pytest.mark.parametrize(("path", "body"), NOT_FOLLOWED, ids=range(len(NOT_FOLLOWED)))
def test_what_is_not_one_conversation_is_not_followed(path, body):
    assert Conversation.from_body(path, body) is None


def test_a_ten_megabyte_body_costs_milliseconds():
    big = [SYSTEM, *(user("x" * 1_000_000) for _ in range(10))]
    many = [SYSTEM, *(user("x" * 600) for _ in range(16_000))]
    for messages in (big, many):
        started = time.perf_counter()
        assert len(chat(*messages).chain) == len(messages)
        # Measured: 26 ms and 190 ms. The bound is there to catch a quadratic step, on a loaded machine too.
        assert time.perf_counter() - started < 2.0
