"""`recall` behind the OpenAI API: what is offered, what its client sees of it, and what later prompts have of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from agentinfer.compress.composition import Composition
from agentinfer.compress.hidden import Exchange, Exchanges, chain_of
from agentinfer.compress.job import CompressionJob
from agentinfer.compress.memory import Observation
from agentinfer.compress.recall import RECALL, offering, recall_tool, recalled
from agentinfer.messages import Conversation
from agentinfer.runtime.compression.recall.answers import Told, summed
from agentinfer.runtime.compression.recall.streamed import StreamedAnswer
from agentinfer.runtime.compression.recall.turn import MAX_ROUNDS, RecallingTurn
from tests.agent_sessions import assistant, call, chat, tool, user
from tests.compress_server import Server

LOOK = {"type": "function", "function": {"name": "look"}}
TAKEN = {3: Observation(3, "look", "{}", "all of it"), 5: Observation(5, "look", "{}", "more of it")}


def recall_call(call_id: str = "call_r", observation: str = "o3") -> dict[str, Any]:
    return call(call_id, RECALL, id=observation)


# -- the tool ----------------------------------------------------------------------------------------------------------


def test_the_tool_stands_behind_the_clients_own() -> None:
    request = {"messages": [], "tools": [LOOK]}
    assert offering(request) == {"messages": [], "tools": [LOOK, recall_tool()]}
    assert request["tools"] == [LOOK]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": []},
        {"tools": [LOOK], "tool_choice": "none"},
        {"tools": [LOOK], "n": 2},
        {"tools": [{"type": "function", "function": {"name": RECALL}}]},
        {"tools": "look"},
    ],
    ids=["no tools", "empty", "none may be called", "two replies", "its own recall", "no list"],
)
def test_a_request_in_which_it_would_mean_something_else_stays_as_it_is(fields: dict[str, Any]) -> None:
    assert offering(fields) is fields


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ('{"id": "o3"}', "all of it"),
        ('{"id": " [o3] "}', "all of it"),
        ({"id": "o5"}, "more of it"),
        ('{"id": "o4"}', "recall: o4: nothing of that id was taken out. Ids that were: o3, o5"),
        ('{"id": "third"}', "recall: observation id: got 'third', expected the letter o and a number, as in o12"),
        ('{"id": 3}', 'recall: expected {"id": "o12"}, got \'{"id": 3}\''),
        ("[]", 'recall: expected {"id": "o12"}, got \'[]\''),
    ],
)
def test_a_call_is_answered_by_the_text_or_by_what_is_wrong_with_it(arguments: Any, answer: str) -> None:
    assert recalled(TAKEN, arguments) == answer


def test_a_call_cut_short_is_answered_too() -> None:
    assert recalled(TAKEN, '{"id": "o').startswith("recall: ")


# -- what is put back --------------------------------------------------------------------------------------------------

ASKED = {"role": "assistant", "content": None, "tool_calls": [recall_call()]}
READ = tool("call_r", "all of it")
HISTORY = [
    user("task"),
    assistant("", call("c1")),
    tool("c1", "x"),
    assistant("It says so.", call("c2")),
    tool("c2", "y"),
]


def composition(covers: int, history: Sequence[dict[str, Any]]) -> Composition:
    digest = chat(*history).chain[covers - 1]
    return Composition(covers, digest, ({"role": "user", "content": "composed"},), (), TAKEN)


def sent(exchange: Exchange, history: Sequence[dict[str, Any]] = HISTORY, covers: int = 1) -> list[Any]:
    """What the engine gets of a history, when the exchange was had ahead of the second reply."""
    exchanges = Exchanges(1 << 20)
    exchanges.put("s", chat(*HISTORY[:3]).chain[-1], exchange)
    return exchanges.sent(composition(covers, history), history, chat(*history).chain)


def test_an_exchange_stands_ahead_of_the_reply_that_came_of_it() -> None:
    composed = {"role": "user", "content": "composed"}
    assert sent(Exchange((ASKED, READ))) == [composed, *HISTORY[1:3], ASKED, READ, *HISTORY[3:]]


def test_one_that_a_composition_ends_before_stands_right_behind_it() -> None:
    assert sent(Exchange((ASKED, READ)), covers=3)[1:] == [ASKED, READ, *HISTORY[3:]]


def test_one_that_a_composition_took_in_is_gone() -> None:
    assert sent(Exchange((ASKED, READ)), covers=4)[1:] == HISTORY[4:]


def test_an_edited_history_has_no_exchange_of_another() -> None:
    edited = [HISTORY[0], HISTORY[1], tool("c1", "edited"), *HISTORY[3:]]
    assert sent(Exchange((ASKED, READ)), edited)[1:] == edited[1:]


def test_a_retry_of_the_turn_is_asked_as_it_was() -> None:
    assert sent(Exchange((ASKED, READ)), HISTORY[:3])[1:] == HISTORY[1:3]


@pytest.mark.parametrize(
    ("content", "left"),
    [("Let me look.\n\nIt says so.", "It says so."), ("Let me look.", ""), ("Otherwise.", "Otherwise."), (None, None)],
)
def test_what_was_said_before_the_call_is_in_the_prompt_once(content: str | None, left: str | None) -> None:
    exchange = Exchange((ASKED | {"content": "Let me look."}, READ), said="Let me look.")
    reply = {"role": "assistant", "content": content, "tool_calls": [call("c2")]}
    assert exchange.around(reply) == [*exchange.before, {**reply, "content": left}]


def test_a_call_beside_the_clients_stands_where_it_stood_and_has_its_result() -> None:
    exchange = Exchange((), beside=((1, recall_call()),), results=(READ,))
    reply = assistant("", call("c2"), call("c3"))
    around = exchange.around(reply)
    assert [each["id"] for each in around[0]["tool_calls"]] == ["c2", "call_r", "c3"]
    assert around[1:] == [READ]
    assert exchange.around(user("not a reply")) == [user("not a reply")]


def test_the_oldest_exchanges_go_where_there_is_no_room_and_a_sessions_with_it() -> None:
    exchange = Exchange((ASKED, READ))
    exchanges = Exchanges(2 * exchange.size_bytes)
    for number in range(3):
        exchanges.put(f"s{number}", bytes([number]), exchange)
    assert len(exchanges) == 2
    exchanges.forget_session("s2")
    exchanges.forget_session("s0")
    assert len(exchanges) == 1


def test_the_chain_of_a_history_is_the_conversations() -> None:
    conversation = chat(*HISTORY)
    assert chain_of(conversation.messages) == tuple(conversation.chain)


# -- streams -----------------------------------------------------------------------------------------------------------


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"id": "r1", "choices": choices, **fields}).encode() + b"\n\n"


def call_chunk(index: int, name: str | None = None, arguments: str = "", call_id: str | None = None) -> bytes:
    delta = {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}
    return chunk({"tool_calls": [delta]})


def read(raw: bytes) -> list[dict[str, Any]]:
    events = [event.removeprefix(b"data: ") for event in raw.split(b"\n\n") if event]
    return [json.loads(event) for event in events if event != b"[DONE]"]


def test_words_pass_byte_for_byte_as_they_come_and_the_end_is_held_back() -> None:
    stream = StreamedAnswer(RECALL, Told())
    words = [chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"}), chunk({"content": "lo"})]
    assert [stream.feed(each) for each in words] == words
    ending = chunk({}, "stop") + chunk(usage=usage_of(1, 2))
    assert stream.feed(ending + b"data: [DONE]\n\n") == b""
    assert stream.said.text == "Hello"
    assert stream.end().endswith(b"data: [DONE]\n\n")


def test_events_may_be_cut_anywhere() -> None:
    raw = (
        chunk({"content": "a"})
        + call_chunk(0, RECALL, '{"id":', "c")
        + call_chunk(0, None, ' "o3"}')
        + chunk({}, "stop")
    )
    for cut in range(1, len(raw)):
        stream = StreamedAnswer(RECALL, Told())
        assert stream.feed(raw[:cut]) + stream.feed(raw[cut:]) == chunk({"content": "a"})
        assert [(each.id, each.arguments) for each in stream.said.hidden] == [("c", '{"id": "o3"}')]
        assert stream.said.asks_only_us


def test_calls_of_the_clients_tools_are_numbered_as_if_there_were_no_other() -> None:
    stream = StreamedAnswer(RECALL, Told())
    passed = b"".join(
        map(
            stream.feed,
            [
                call_chunk(0, RECALL, "", "c0"),
                call_chunk(1, "look", "", "c1"),
                call_chunk(0, None, '{"id": "o3"}'),
                call_chunk(1, None, "{}"),
                call_chunk(2, "look", "{}", "c2"),
                chunk({}, "tool_calls"),
            ],
        )
    )
    calls = [event["choices"][0]["delta"]["tool_calls"][0] for event in read(passed)]
    assert [each["index"] for each in calls] == [0, 0, 1]
    assert stream.said.asks_both
    assert read(stream.end())[0]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_further_answer_goes_on_in_the_same_reply() -> None:
    told = Told(
        text="Let me look.", answer_id="r0", usage={"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    )
    stream = StreamedAnswer(RECALL, told)
    passed = stream.feed(
        chunk({"role": "assistant", "content": ""}) + chunk({"content": "So"}) + chunk({"content": "."})
    )
    assert [event["choices"][0]["delta"] for event in read(passed)] == [{"content": "\n\nSo"}, {"content": "."}]
    stream.feed(chunk({}, "stop") + chunk(usage=usage_of(20, 2)))
    ending = read(stream.end())
    assert {event["id"] for event in [*read(passed), *ending]} == {"r0"}
    assert ending[-1]["usage"] == usage_of(30, 3)


@pytest.mark.parametrize("event", [b": ping\n\n", b"data: [1]\n\n", b"data: {\n\n", b'data: {"choices": [{}]}\n\n'])
def test_what_is_none_of_the_usual_events_passes_as_it_is(event: bytes) -> None:
    assert StreamedAnswer(RECALL, Told()).feed(event) == event


def test_a_call_that_was_cut_off_is_not_answered() -> None:
    stream = StreamedAnswer(RECALL, Told())
    stream.feed(call_chunk(0, RECALL, '{"id', "c") + chunk({}, "length"))
    assert not stream.said.asks_only_us
    assert read(stream.end())[0]["choices"][0]["finish_reason"] == "length"


def test_usage_adds_up_where_the_cache_is_told_of() -> None:
    first = {"prompt_tokens": 5, "total_tokens": 6, "completion_tokens": 1, "prompt_tokens_details": None}
    second = {
        "prompt_tokens": 9,
        "total_tokens": 11,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    third = summed(summed(first, second), second)
    assert third == {
        "prompt_tokens": 23,
        "total_tokens": 28,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 8},
    }


# -- a turn ------------------------------------------------------------------------------------------------------------


class Engine:
    """An app that answers what is next in `replies`: a message, or a status. `asked` are the requests it got."""

    def __init__(self, *replies: dict[str, Any] | int, stream: bool = False) -> None:
        self.replies: Iterator[dict[str, Any] | int] = iter(replies)
        self.stream = stream
        self.asked: list[dict[str, Any]] = []
        self.kept: list[Exchange] = []
        self.sent: list[dict[str, Any]] = []
        self.leaves_after: int | None = None
        self.times_again = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        assert int(dict(scope["headers"])[b"content-length"]) == len(body)
        self.asked.append(json.loads(body))
        if self.leaves_after == len(self.asked):
            await receive()
        reply = next(self.replies)
        usage = {
            "prompt_tokens": 10 * len(self.asked),
            "completion_tokens": 1,
            "total_tokens": 10 * len(self.asked) + 1,
        }
        if isinstance(reply, int):
            kind, raw = b"application/json", json.dumps({"object": "error", "message": "too long"}).encode()
        elif self.stream:
            kind, raw = b"text/event-stream", b"".join(self.events(reply, usage))
        else:
            finish = "tool_calls" if reply.get("tool_calls") else "stop"
            choice = {"index": 0, "message": reply, "finish_reason": finish}
            kind, raw = b"application/json", json.dumps({"id": "r", "choices": [choice], "usage": usage}).encode()
        headers = [(b"content-type", kind), (b"content-length", str(len(raw)).encode())][: 1 if self.stream else 2]
        await send(
            {"type": "http.response.start", "status": reply if isinstance(reply, int) else 200, "headers": headers}
        )
        for place in range(0, len(raw), 50):
            await send({"type": "http.response.body", "body": raw[place : place + 50], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def events(self, reply: dict[str, Any], usage: dict[str, Any]) -> Iterator[bytes]:
        yield chunk({"role": "assistant", "content": ""})
        if reply["content"]:
            yield chunk({"content": reply["content"]})
        for index, each in enumerate(reply.get("tool_calls") or ()):
            yield call_chunk(index, each["function"]["name"], "", each["id"])
            yield call_chunk(index, None, each["function"]["arguments"])
        yield chunk({}, "tool_calls" if reply.get("tool_calls") else "stop")
        yield chunk(usage=usage)
        yield b"data: [DONE]\n\n"

    def again(self) -> None:
        self.times_again += 1

    def turn(self) -> tuple[int, Any]:
        """Status and body of what the client gets."""
        request = {"messages": [user("task")], "tools": [LOOK], "rid": "mine", "seed": 1}
        raw = json.dumps(offering(request)).encode()
        incoming = [{"type": "http.request", "body": raw, "more_body": False}]

        async def receive() -> Any:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.sent.append(message)

        serving = RecallingTurn(
            self, request, lambda arguments: recalled(TAKEN, arguments), self.kept.append, self.again
        )
        headers = [(b"content-length", str(len(raw)).encode()), (b"authorization", b"x")]
        asyncio.run(serving({"type": "http", "headers": headers}, receive, send))
        if not self.sent:
            return 0, None
        body = b"".join(each.get("body", b"") for each in self.sent[1:])
        length = dict(self.sent[0]["headers"]).get(b"content-length")
        assert length is None or int(length) == len(body)
        assert [each["type"] for each in self.sent].count("http.response.start") == 1
        assert self.sent[-1]["more_body"] is False
        return self.sent[0]["status"], body if self.stream else json.loads(body)


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def reply_of(answer: Any) -> tuple[str, list[str], str, dict[str, int]]:
    """What the client was told: text, the names of called tools, why it ended, and the usage."""
    if isinstance(answer, dict):
        choice = answer["choices"][0]
        calls = choice["message"].get("tool_calls") or ()
        names = [each["function"]["name"] for each in calls]
        return choice["message"].get("content") or "", names, choice["finish_reason"], answer["usage"]
    assert answer.endswith(b"data: [DONE]\n\n")
    assert answer.count(b"[DONE]") == 1
    events = read(answer)
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    names = [each["function"]["name"] for delta in deltas for each in delta.get("tool_calls") or ()]
    ends = [event["choices"][0]["finish_reason"] for event in events if event["choices"]]
    assert [end for end in ends if end] == ends[-1:]
    return (
        "".join(delta.get("content") or "" for delta in deltas),
        [name for name in names if name],
        ends[-1],
        events[-1]["usage"],
    )


def test_the_client_sees_one_reply_and_nothing_of_the_tool(stream: bool) -> None:
    engine = Engine(assistant("Wait.", recall_call()), assistant("Done.", call("c1", "look")), stream=stream)
    status, answer = engine.turn()
    assert status == 200
    text, names, finish, usage = reply_of(answer)
    assert (text, names, finish) == ("Wait.\n\nDone.", ["look"], "tool_calls")
    assert usage == usage_of(30, 2)
    asked = {"role": "assistant", "content": "Wait.", "tool_calls": [recall_call()]}
    assert engine.asked[1]["messages"] == [user("task"), asked, READ]
    assert engine.asked[1]["tools"] == engine.asked[0]["tools"] == [LOOK, recall_tool()]
    assert (engine.asked[1]["seed"], "rid" in engine.asked[1]) == (1, False)
    assert engine.kept == [Exchange((asked, READ), "Wait.")]
    assert engine.times_again == 1


def test_a_reply_without_the_tool_is_as_it_was(stream: bool) -> None:
    engine = Engine(assistant("Done.", call("c1", "look")), stream=stream)
    _, answer = engine.turn()
    assert reply_of(answer)[:3] == ("Done.", ["look"], "tool_calls")
    assert engine.kept == []
    assert len(engine.asked) == 1


def test_beside_the_clients_calls_it_is_answered_for_the_next_turn(stream: bool) -> None:
    engine = Engine(assistant("", call("c1", "look"), recall_call()), stream=stream)
    _, answer = engine.turn()
    assert reply_of(answer)[:3] == ("", ["look"], "tool_calls")
    assert engine.kept == [Exchange((), "", ((1, recall_call()),), (READ,))]
    assert len(engine.asked) == 1


def test_numbers_of_calls_have_no_gap_where_one_is_left_out() -> None:
    calls = [{**recall_call(), "index": 0}, {**call("c1", "look"), "index": 1}]
    _, answer = Engine(assistant("", *calls)).turn()
    assert [each["index"] for each in answer["choices"][0]["message"]["tool_calls"]] == [0]


def test_a_model_that_goes_on_calling_is_asked_without_the_tool_in_the_end(stream: bool) -> None:
    calls = [assistant("", recall_call(f"call_{number}", "o5")) for number in range(MAX_ROUNDS)]
    engine = Engine(*calls, assistant("Done."), stream=stream)
    _, answer = engine.turn()
    assert reply_of(answer)[:3] == ("Done.", [], "stop")
    assert [len(each["tools"]) for each in engine.asked] == [2] * MAX_ROUNDS + [1]
    assert len(engine.kept[0].before) == 2 * MAX_ROUNDS


def test_even_then_its_call_is_not_the_clients(stream: bool) -> None:
    engine = Engine(*[assistant("", recall_call())] * (MAX_ROUNDS + 1), stream=stream)
    _, answer = engine.turn()
    assert reply_of(answer)[:3] == ("", [], "stop")


def test_a_result_that_does_not_fit_is_given_up_for_the_turn(stream: bool) -> None:
    engine = Engine(assistant("", recall_call()), 400, assistant("Done."), stream=stream)
    status, answer = engine.turn()
    assert (status, reply_of(answer)[:3]) == (200, ("Done.", [], "stop"))
    assert engine.asked[2] == {"messages": [user("task")], "tools": [LOOK], "seed": 1}
    assert engine.kept == []


def test_an_engine_that_fails_is_told_as_it_says(stream: bool) -> None:
    engine = Engine(400, stream=stream)
    engine.stream = False
    status, answer = engine.turn()
    assert (status, answer["message"]) == (400, "too long")


def test_an_engine_that_fails_for_good_ends_the_stream_with_the_error() -> None:
    engine = Engine(assistant("Wait.", recall_call()), 400, 500, stream=True)
    _, answer = engine.turn()
    assert read(answer)[-1] == {"error": {"object": "error", "message": "too long"}}
    assert answer.endswith(b"data: [DONE]\n\n")
    assert engine.kept == []


def test_a_client_that_leaves_ends_the_asking(stream: bool) -> None:
    engine = Engine(assistant("", recall_call()), assistant("Done."), stream=stream)
    engine.leaves_after = 1
    engine.replies = iter([assistant("", recall_call())])
    raw = RecallingTurn(engine, {"messages": [user("task")]}, lambda _: "", engine.kept.append, engine.again)

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        engine.sent.append(message)

    incoming = [{"type": "http.request", "body": b'{"messages": []}', "more_body": False}, {"type": "http.disconnect"}]
    asyncio.run(raw({"type": "http", "headers": [(b"content-length", b"16")]}, receive, send))
    assert len(engine.asked) == 1
    assert all(message.get("more_body", True) for message in engine.sent), "nothing says that the answer is whole"
    assert engine.kept == []


# -- through the middleware -------------------------------------------------------------------------------------------


def story_of(server: Server, turns: int = 6) -> Conversation:
    """A session that was shortened, one recall of its first result, and two turns after it."""

    async def story() -> None:
        for _ in range(turns):
            await server.turn(tools=[LOOK])
            await server.settle()
        server.replies = [assistant("Wait.", recall_call()), assistant("So.", call("call_x", "look"))]
        await server.turn(tools=[LOOK])
        await server.settle()
        await server.turn(tools=[LOOK])
        await server.settle()

    asyncio.run(story())
    return chat(*server.messages)


def bodies(server: Server) -> list[dict[str, Any]]:
    return [json.loads(raw) for _, raw in server.got]


def test_a_session_is_offered_the_tool_from_the_turn_on_that_something_was_taken(monkeypatch) -> None:
    server = Server(monkeypatch, recall=True)
    story_of(server)
    for body in bodies(server):
        is_composed = any("fact 3" in str(message.get("content")) for message in body["messages"])
        assert (recall_tool() in body["tools"]) == is_composed
    assert recall_tool() in bodies(server)[-1]["tools"]


def test_what_was_recalled_stays_in_the_prompts_and_out_of_the_clients_history(monkeypatch) -> None:
    server = Server(monkeypatch, recall=True)

    async def story() -> None:
        while server.compression.status()["jobs"].get("swapped", 0) == 0:
            await server.turn(tools=[LOOK])
            await server.settle()
        monkeypatch.setattr(CompressionJob, "_start", lambda *_, **__: [])  # from here on, no further one
        server.replies = [assistant("Wait.", recall_call()), assistant("So.", call("call_x", "look"))]
        await server.turn(tools=[LOOK])
        await server.turn(tools=[LOOK])

    asyncio.run(story())
    *_, asked, again, after = bodies(server)
    text = next(message["content"] for message in server.messages if message.get("tool_call_id") == "call_2")
    hidden = [{"role": "assistant", "content": "Wait.", "tool_calls": [recall_call()]}, tool("call_r", text)]
    assert again["messages"] == [*asked["messages"], *hidden]
    assert server.messages[-4]["content"] == "Wait.\n\nSo."
    assert all(message not in server.messages for message in hidden)
    # The next prompt goes on from what is in the cache, the reply without what stands ahead of it.
    so_far = [*again["messages"], {**server.messages[-4], "content": "So."}, server.messages[-3]]
    assert after["messages"] == so_far


def test_what_is_computed_ahead_is_what_the_turn_will_ask(monkeypatch) -> None:
    server = Server(monkeypatch, recall=True)
    story_of(server)
    composed = [body for body in server.warmed if any(message.get("content") == "[o3]" for message in body["messages"])]
    assert composed
    assert all(recall_tool() in body["tools"] for body in composed)


def test_all_that_the_engine_was_asked_is_counted(monkeypatch) -> None:
    server = Server(monkeypatch, recall=True)
    story_of(server)
    view = server.table.get("s")
    assert view is not None
    turn = view.notes["recent_turns"][-2]
    first, again = server.answers[-2]["usage"]["prompt_tokens"], turn["recalled"]["prompt_tokens"]
    assert turn["recalled"]["ids"] == ["o3"]
    assert turn["prompt_tokens"] + again == first
    told = sum(answer["usage"]["prompt_tokens"] for answer in server.answers)
    assert server.follower.status()["tokens"]["prompt_computed"] == told == view.prompt_tokens
    assert server.compression.status()["recall"] == {"answered": 1, "refused": 0, "kept": 1}


def test_without_the_switch_nothing_of_it_is_there(monkeypatch) -> None:
    server = Server(monkeypatch)
    asyncio.run(server.turns(6))
    asyncio.run(server.turn(tools=[LOOK]))
    body = bodies(server)[-1]
    assert body["tools"] == [LOOK]
    assert "recall" not in server.compression.status()
