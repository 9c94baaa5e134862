"""The answers we read have the shape that the installed engine gives them, by its own models."""

from __future__ import annotations

import json

import pytest

from agentinfer.messages import Conversation, Reply, ToolCall

pytestmark = pytest.mark.sglang


@pytest.fixture(scope="module")
def openai():
    return pytest.importorskip("sglang.srt.entrypoints.openai.protocol")


@pytest.fixture(scope="module")
def anthropic():
    return pytest.importorskip("sglang.srt.entrypoints.anthropic.protocol")


CALL = ToolCall("c1", "bash", '{"a": 1}')


def test_chat_answer(openai):
    function = openai.FunctionResponse(name=CALL.name, arguments=CALL.arguments_text)
    message = openai.ChatMessage(
        role="assistant",
        content="I look.",
        reasoning_content="hm",
        tool_calls=[openai.ToolCall(id=CALL.id, index=0, function=function)],
    )
    choice = openai.ChatCompletionResponseChoice(index=0, message=message, finish_reason="tool_calls")
    answer = openai.ChatCompletionResponse(id="r", model="m", choices=[choice], usage=openai.UsageInfo())
    reply = Reply.from_json("chat", json.loads(answer.model_dump_json()))
    assert reply == Reply("I look.", "hm", (CALL,), "tool_calls", "r")
    # A client sends the message back as it was dumped, `index` and nulls included.
    sent_back = Conversation.from_body("/v1/chat/completions", {"messages": [message.model_dump()]})
    assert sent_back.messages[0].digest == reply.message.digest


def test_chat_stream(openai):
    def call(**function):
        return [openai.ToolCall(id=function.pop("id", None), index=0, function=openai.FunctionResponse(**function))]

    deltas = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "I look."},
        {"tool_calls": call(id="c1", name="bash", arguments="")},
        {"tool_calls": call(arguments='{"a"')},
        {"tool_calls": call(arguments=": 1}")},
    ]
    choices = [
        *(openai.ChatCompletionResponseStreamChoice(index=0, delta=openai.DeltaMessage(**delta)) for delta in deltas),
        openai.ChatCompletionResponseStreamChoice(index=0, delta=openai.DeltaMessage(), finish_reason="tool_calls"),
    ]
    chunks = [openai.ChatCompletionStreamResponse(id="r", model="m", choices=[choice]) for choice in choices]
    data = "".join(f"data: {chunk.model_dump_json()}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    assert Reply.from_sse("chat", data.encode()) == Reply("I look.", "hm", (CALL,), "tool_calls", "r")


def test_completions_stream(openai):
    choices = [openai.CompletionResponseStreamChoice(index=0, text=text) for text in ("I ", "look.")]
    chunks = [openai.CompletionStreamResponse(id="r", model="m", choices=[choice]) for choice in choices]
    data = "".join(f"data: {chunk.model_dump_json()}\n\n" for chunk in chunks)
    assert Reply.from_sse("completions", data.encode()) == Reply("I look.", response_id="r")


def test_anthropic_stream(anthropic):
    start = anthropic.AnthropicMessagesResponse(
        id="r", model="m", role="assistant", content=[], usage=anthropic.AnthropicUsage(input_tokens=1, output_tokens=0)
    )
    tool_use = anthropic.ToolUseBlock(id="c1", name="bash", input={})
    events = [
        anthropic.MessageStartEvent(message=start),
        anthropic.ContentBlockStartEvent(index=0, content_block=anthropic.TextBlock(text="")),
        anthropic.ContentBlockDeltaEvent(index=0, delta=anthropic.TextDelta(text="I look.")),
        anthropic.ContentBlockStopEvent(index=0),
        anthropic.ContentBlockStartEvent(index=1, content_block=tool_use),
        anthropic.ContentBlockDeltaEvent(index=1, delta=anthropic.InputJsonDelta(partial_json='{"a": 1}')),
        anthropic.ContentBlockStopEvent(index=1),
        anthropic.MessageDeltaEvent(
            delta=anthropic.AnthropicMessageEndDelta(stop_reason="tool_use"),
            usage=anthropic.AnthropicUsage(output_tokens=5),
        ),
        anthropic.MessageStopEvent(),
    ]
    data = "".join(f"event: {event.type}\ndata: {event.model_dump_json(exclude_none=True)}\n\n" for event in events)
    reply = Reply.from_sse("anthropic", data.encode())
    assert reply == Reply("I look.", "", (ToolCall("c1", "bash", '{"a":1}'),), "tool_use", "r")
