"""Replies of five APIs, whole and streamed, give the message that a client sends back."""

from __future__ import annotations

import json

import pytest

from agentinfer.messages import Conversation, Reply, ToolCall, shortened


def sse(*events, named=False):
    lines = [(f"event: {e['type']}\n" if named else "") + f"data: {json.dumps(e)}\n\n" for e in events]
    return "".join(lines).encode() + (b"" if named else b"data: [DONE]\n\n")


def chunk(delta, finish_reason=None, index=0):
    return {"id": "r1", "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def piece(index, call_id=None, name=None, arguments=None):
    return {"tool_calls": [{"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}]}


CALLS = (ToolCall("c1", "bash", '{"command": "ls"}'), ToolCall("c2", "read", "{}"))

CHAT_JSON = {
    "id": "r1",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments_text}}
                    for c in CALLS
                ],
            },
        }
    ],
}
CHAT_SSE = sse(
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "h"}),
    chunk({"reasoning_content": "m"}),
    chunk({"content": "I "}),
    chunk({"content": "another sample"}, index=1),
    chunk({"content": "look."}),
    chunk(piece(0, "c1", "bash", "")),
    chunk(piece(0, arguments='{"command": ')),
    chunk(piece(0, arguments='"ls"}')),
    chunk(piece(1, "c2", "read", "{}")),
    chunk({}, "tool_calls"),
    {"id": "r1", "choices": [], "usage": {"prompt_tokens": 3}},
)


@pytest.mark.parametrize(
    "reply", [Reply.from_json("chat", CHAT_JSON), Reply.from_sse("chat", CHAT_SSE)], ids=["json", "sse"]
)
def test_chat(reply):
    assert reply == Reply("I look.", "hm", CALLS, "tool_calls", "r1")
    sent_back = Conversation.from_body("/v1/chat/completions", {"messages": [CHAT_JSON["choices"][0]["message"]]})
    assert sent_back.messages[0].digest == reply.message.digest


ANTHROPIC_CONTENT = [
    {"type": "thinking", "thinking": "hm", "signature": ""},
    {"type": "text", "text": "I look."},
    {"type": "tool_use", "id": "c1", "name": "bash", "input": {"command": "ls"}},
    {"type": "tool_use", "id": "c2", "name": "read", "input": {}},
]


def anthropic_block(index, start, *deltas):
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


ANTHROPIC_SSE = sse(
    {"type": "message_start", "message": {"id": "r1", "content": [], "role": "assistant"}},
    *anthropic_block(0, {"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": "hm"}),
    *anthropic_block(
        1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "I "}, {"type": "text_delta", "text": "look."}
    ),
    *anthropic_block(
        2,
        {"type": "tool_use", "id": "c1", "name": "bash", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"command"'},
        {"type": "input_json_delta", "partial_json": ': "ls"}'},
    ),
    *anthropic_block(3, {"type": "tool_use", "id": "c2", "name": "read", "input": {}}),
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
    {"type": "message_stop"},
    named=True,
)


@pytest.mark.parametrize(
    "reply",
    [
        Reply.from_json("anthropic", {"id": "r1", "content": ANTHROPIC_CONTENT, "stop_reason": "tool_use"}),
        Reply.from_sse("anthropic", ANTHROPIC_SSE),
    ],
    ids=["json", "sse"],
)
def test_anthropic(reply):
    calls = (ToolCall("c1", "bash", '{"command":"ls"}'), ToolCall("c2", "read", "{}"))
    assert reply == Reply("I look.", "hm", calls, "tool_use", "r1")
    body = {"messages": [{"role": "assistant", "content": ANTHROPIC_CONTENT}]}
    assert Conversation.from_body("/v1/messages", body).messages[0].digest == reply.message.digest


RESPONSES_OUTPUT = [
    {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
    },
    {"type": "function_call", "id": "fc", "call_id": "c1", "name": "bash", "arguments": '{"command": "ls"}'},
    {"type": "function_call", "id": "fc2", "call_id": "c2", "name": "read", "arguments": "{}"},
]
RESPONSES_DONE = {
    "type": "response.completed",
    "response": {"id": "r1", "status": "completed", "output": RESPONSES_OUTPUT},
}
RESPONSES_ITEMS = [
    {"type": "response.created", "response": {"id": "r1", "output": []}},
    {"type": "response.output_text.delta", "delta": "I look."},
    *({"type": "response.output_item.done", "item": item} for item in RESPONSES_OUTPUT),
]


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply.from_json("responses", {"id": "r1", "status": "completed", "output": RESPONSES_OUTPUT}), "completed"),
        (Reply.from_sse("responses", sse(*RESPONSES_ITEMS, RESPONSES_DONE, named=True)), "completed"),
        (Reply.from_sse("responses", sse(*RESPONSES_ITEMS, named=True)), None),
    ],
    ids=["json", "sse", "sse cut off"],
)
def test_responses(reply, status):
    assert reply == Reply("I look.", "hm", CALLS, status, "r1")
    sent_back = Conversation.from_body("/v1/responses", {"input": RESPONSES_OUTPUT})
    assert sent_back.messages[0].digest == reply.message.digest


@pytest.mark.parametrize(
    "reply",
    [
        Reply.from_json("completions", {"id": "r1", "choices": [{"index": 0, "text": "abc", "finish_reason": "stop"}]}),
        Reply.from_sse(
            "completions",
            sse(
                {"id": "r1", "choices": [{"index": 0, "text": "ab"}]},
                {"id": "r1", "choices": [{"index": 0, "text": "c", "finish_reason": "stop"}]},
            ),
        ),
    ],
    ids=["json", "sse"],
)
def test_completions(reply):
    assert reply == Reply("abc", finish_reason="stop", response_id="r1")


def generated(text, ids, num_tokens, reason=None):
    finish = {"type": reason} if reason else None
    return {
        "text": text,
        "output_ids": ids,
        "meta_info": {"id": "r1", "completion_tokens": num_tokens, "finish_reason": finish},
    }


def without_ids(*events):
    return [{name: value for name, value in event.items() if name != "output_ids"} for event in events]


CUMULATIVE = (generated("a", [1], 1), generated("aab", [1, 2], 2), generated("aabc", [1, 2, 3], 3, "stop"))
INCREMENTAL = (generated("a", [1], 1), generated("ab", [2], 2), generated("c", [3], 3, "stop"))


@pytest.mark.parametrize(
    ("reply", "ids"),
    [
        (Reply.from_json("generate", CUMULATIVE[-1]), (1, 2, 3)),
        (Reply.from_sse("generate", sse(*CUMULATIVE)), (1, 2, 3)),
        (Reply.from_sse("generate", sse(*INCREMENTAL)), (1, 2, 3)),
        (Reply.from_sse("generate", sse(*without_ids(*CUMULATIVE))), None),
    ],
    ids=["json", "sse", "incremental sse", "sse without ids"],
)
def test_generate(reply, ids):
    assert reply == Reply("aabc", finish_reason="stop", response_id="r1", token_ids=ids)


def test_generate_reads_the_first_of_several_choices():
    first = [{**event, "index": 0} for event in CUMULATIVE]
    second = [{**event, "index": 1} for event in (generated("x", [7], 1), generated("xy", [7, 8], 2, "length"))]
    answer = Reply.from_sse("generate", sse(first[0], second[0], first[1], first[2], second[1]))
    assert answer == Reply("aabc", finish_reason="stop", response_id="r1", token_ids=(1, 2, 3))


@pytest.mark.parametrize(
    "events",
    [CUMULATIVE, INCREMENTAL, without_ids(*CUMULATIVE), (*CUMULATIVE[:2], {"error": {"message": "no"}})],
    ids=["cumulative", "incremental", "without ids", "error"],
)
def test_a_generate_stream_shortened_at_any_byte_reads_the_same(events):
    data = sse(*events)
    for cut in range(len(data) + 1):
        assert Reply.from_sse("generate", shortened("generate", data[:cut]) + data[cut:]) == Reply.from_sse(
            "generate", data
        )


def test_shortening_leaves_one_event_of_a_cumulative_stream_and_other_apis_as_they_are():
    assert shortened("generate", sse(*CUMULATIVE)) == sse(CUMULATIVE[-1]).partition(b"data: [DONE]")[0]
    assert shortened("chat", CHAT_SSE) is CHAT_SSE


@pytest.mark.parametrize("api", ["chat", "completions", "responses", "anthropic", "generate"])
def test_an_answer_without_a_reply_is_empty(api):
    for body in ({}, {"error": {"message": "no"}}, {"choices": [], "output": None, "content": 3}, []):
        assert Reply.from_json(api, body).is_empty
    for data in (b"", b"data: [DONE]\n\n", b"data: {broken", b"\xff\x00", b"data: 3\n\ndata: []\n\n"):
        assert Reply.from_sse(api, data).is_empty


def test_a_stream_cut_inside_a_line_gives_what_came_before():
    data = CHAT_SSE[: CHAT_SSE.index(b'"look."')]
    assert Reply.from_sse("chat", data).text == "I "
