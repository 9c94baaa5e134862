"""Compression beside the turns: the share of time that warming takes, and that no failure costs a turn anything."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from agentinfer.clock import ManualClock, SystemClock
from agentinfer.compress.distiller import Assignment
from agentinfer.compress.note import Note
from agentinfer.runtime.compression.door import AppDoor, Asked, DoorError
from agentinfer.runtime.prefill.engine import Prompt, Wanted, _stop_at_the_door, wanted_prompt
from agentinfer.runtime.prefill.warming import Pace, Stride, Warmed, WarmingError, warm
from agentinfer.runtime.turns import current_turn
from tests.agent_sessions import assistant, call, user
from tests.compress_server import Noting, Server

# -- warming ----------------------------------------------------------------------------------------------------------


def paced(num_pieces: int, running: bool, end_turn_after_s: float | None = None) -> float:
    """Seconds that pieces of 10 ms take altogether, while a turn runs or not."""

    async def piece() -> int:
        await asyncio.sleep(0.01)
        return 10

    async def story() -> float:
        pace = Pace(SystemClock())
        if running:
            pace.turn_begun()
        if end_turn_after_s is not None:
            asyncio.get_running_loop().call_later(end_turn_after_s, pace.turn_finished)
        started_s = time.monotonic()
        for _ in range(num_pieces):
            await pace.run(piece)
        return time.monotonic() - started_s

    return asyncio.run(story())


def test_while_a_turn_runs_a_tenth_of_the_time_is_the_warmings() -> None:
    # Three pieces with two rests of nine times as long between them.
    assert paced(3, running=True) >= 3 * 0.01 + 2 * 9 * 0.01


def test_pieces_follow_each_other_while_no_turn_runs() -> None:
    assert paced(10, running=False) < 5 * 10 * 0.01


def test_the_end_of_the_last_turn_ends_the_rest() -> None:
    assert paced(2, running=True, end_turn_after_s=0.03) < 9 * 0.01


def test_one_piece_at_a_time_is_in_the_engine() -> None:
    inside, most = 0, 0

    async def piece() -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        return 0

    async def story() -> None:
        pace = Pace(ManualClock())
        await asyncio.gather(*(pace.run(piece) for _ in range(8)))

    asyncio.run(story())
    assert most == 1


def warmed_by(ids: Sequence[int], warmed: Warmed, cached: int = 0) -> list[int]:
    """The lengths of the pieces that put `ids` into a cache which has the first `cached` of them."""
    asked: list[int] = []

    async def compute(num_tokens: int) -> int:
        done = max([cached, len(warmed.ids), *asked])
        asked.append(num_tokens)
        return max(1, num_tokens - done)

    asyncio.run(warm(ids, warmed, Pace(ManualClock()), Stride(), compute))
    return asked


def test_a_prompt_is_computed_in_pieces_and_what_was_computed_is_left_out() -> None:
    warmed = Warmed()
    assert warmed_by(range(600), warmed) == [256, 512, 600]
    assert (warmed.computed_tokens, warmed.num_pieces) == (600, 3)
    # The next prompt of the job: the same but for its last ten tokens, and longer.
    assert warmed_by([*range(590), *range(900, 1000)], warmed) == [690]
    assert list(warmed.ids) == [*range(590), *range(900, 1000)]


def test_pieces_are_as_long_as_the_engine_computes_in_their_time() -> None:
    stride = Stride()
    stride.observe(256, took_s=0.2)
    assert stride.num_tokens == 64
    stride.observe(64, took_s=0.001)
    assert stride.num_tokens == 128, "twice as long at most"
    stride.observe(1, took_s=0.001)
    assert stride.num_tokens == 128, "what was cached says nothing of the speed"


def test_a_cache_without_room_ends_the_warming() -> None:
    async def compute(num_tokens: int) -> int:
        return num_tokens

    async def story() -> None:
        await warm(range(5000), Warmed(), Pace(ManualClock()), Stride(), compute)

    with pytest.raises(WarmingError, match="no room"):
        asyncio.run(story())


# -- the engine's door ------------------------------------------------------------------------------------------------


class Manager:
    """A tokenizer manager as far as the hook sees it."""

    class Tokenizer:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    tokenizer = Tokenizer()


class Request:
    def __init__(self, **fields: Any) -> None:
        self.input_ids: list[int] | None = None
        self.text = "abc"
        self.__dict__.update(fields)


def at_the_door(request: Request) -> Wanted:
    wanted = Wanted()
    token = wanted_prompt.set(wanted)
    try:
        with pytest.raises(ValueError, match="only the prompt"):
            _stop_at_the_door(lambda *_: None, Manager(), request)
    finally:
        wanted_prompt.reset(token)
    return wanted


def test_a_request_for_its_prompt_is_stopped_and_any_other_goes_on() -> None:
    wanted = at_the_door(Request(input_ids=[1, 2], lora_path="adapter", extra_key=None))
    assert wanted.prompt is not None
    assert (wanted.prompt.ids, wanted.prompt.identity) == ((1, 2), {"lora_path": "adapter"})
    assert _stop_at_the_door(lambda *arguments: len(arguments), Manager(), Request()) == 3


def test_a_prompt_of_more_than_text_is_not_warmed() -> None:
    wanted = at_the_door(Request(image_data=["i.png"]))
    assert (wanted.prompt, wanted.why_not) == (None, "the prompt has image_data")


# -- the service, over an app of a few lines ---------------------------------------------------------------------------


def test_a_turn_gets_the_shortened_context_with_its_own_length_and_everything_else_as_it_came(monkeypatch) -> None:
    server = Server(monkeypatch)

    async def story() -> None:
        await server.turns(6)
        await server.turn(tools=[{"type": "function"}], n=2, seed=7)

    asyncio.run(story())
    headers, raw = server.got[-1]
    assert headers["content-length"] == str(len(raw))
    assert headers["authorization"] == "Bearer of it"
    body = json.loads(raw)
    assert (body["tools"], body["n"], body["seed"]) == ([{"type": "function"}], 2, 7)
    assert body["messages"][3]["content"] == "[o3]"
    assert body["messages"][-1] == server.messages[-3]
    assert any("fact 3" in str(each["content"]) for each in body["messages"])
    assert server.jobs["swapped"] >= 1
    view = server.table.get("s")
    assert view is not None
    assert view.notes["recent_turns"][-1]["composed"] is True
    assert server.computed


def test_what_fails_before_the_engine_leaves_the_clients_own_bytes(monkeypatch) -> None:
    server = Server(monkeypatch)

    def broken(*_: Any) -> bytes:
        raise RuntimeError("broken")

    monkeypatch.setattr(server.compression, "body_for", broken)
    sent = asyncio.run(server.turns(6))
    assert [raw for _, raw in server.got] == sent


def test_what_fails_after_a_turn_changes_no_answer(monkeypatch) -> None:
    server = Server(monkeypatch)

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(server.compression, "turn_ended", broken)
    sent = asyncio.run(server.turns(6))
    assert [raw for _, raw in server.got] == sent
    assert server.table.counts()["running"] == 0


async def _raises(assignment: Assignment) -> Note:
    raise OSError("killed")


async def _hangs(assignment: Assignment) -> Note:
    await asyncio.sleep(60)
    return Note()


async def _says_nothing(assignment: Assignment) -> Note:
    return Note()


@pytest.mark.parametrize(
    ("does", "end"),
    [(_raises, "failed"), (_hangs, "failed"), (_says_nothing, "empty")],
    ids=["killed", "hangs", "says nothing"],
)
def test_a_compressor_that_does_not_answer_leaves_the_session_as_it_is(does, end: str, monkeypatch) -> None:
    server = Server(monkeypatch, Noting(does), distil_timeout_s=0.05)
    sent = asyncio.run(server.turns(5))
    assert [raw for _, raw in server.got] == sent
    assert set(server.jobs) == {end}


def test_turns_go_on_while_the_compressor_works(monkeypatch) -> None:
    server = Server(monkeypatch, Noting(_hangs))

    async def story() -> list[bytes]:
        sent = [await server.turn() for _ in range(6)]
        server.compression.close()
        return sent

    sent = asyncio.run(story())
    assert [raw for _, raw in server.got] == sent
    assert server.compression.status()["sessions"]["distilling"] == 1


def test_a_session_that_is_over_stops_its_job_and_is_forgotten(monkeypatch) -> None:
    server = Server(monkeypatch, Noting(_hangs))

    async def story() -> None:
        for _ in range(5):
            await server.turn()
        server.table.close("s")
        await server.settle()

    asyncio.run(story())
    assert server.jobs == {"cancelled": 1}
    assert server.compression.status()["sessions"] == {"distilling": 0, "warming": 0, "ready": 0}
    assert not server.compression._sessions


def test_no_state_of_a_request_leaks_into_what_runs_beside_it(monkeypatch) -> None:
    bound: list[object] = []

    async def look(assignment: Assignment) -> Note:
        bound.append(current_turn.get())
        return Note()

    asyncio.run(Server(monkeypatch, Noting(look)).turns(4))
    assert bound
    assert set(bound) == {None}


def test_a_kept_request_holds_no_messages_and_only_the_headers_its_rights_hang_on() -> None:
    scope = {"type": "http", "headers": [(b"authorization", b"x"), (b"cookie", b"y")], "state": {}, "app": "app"}
    asked = Asked.of(scope, {"messages": [1], "tools": [2], "n": 3, "stream": True, "agentinfer": {}})
    assert asked.fields == {"tools": [2]}
    assert asked.scope == {"type": "http", "headers": [(b"authorization", b"x")], "app": "app"}


def test_an_app_that_refuses_the_request_is_quoted() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"who are you"})

    asked = Asked({}, {"headers": []})
    with pytest.raises(DoorError, match="did not reach the engine: who are you"):
        asyncio.run(AppDoor(app).prompt(asked, [user("hi")]))


def test_a_prompt_ends_where_the_next_message_begins() -> None:
    asked_for: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        messages = json.loads((await receive())["body"])["messages"]
        asked_for.append(messages[-1])
        wanted = wanted_prompt.get()
        assert wanted is not None
        text = "".join(f"<{each['role']}>{each['content']}" for each in messages) + "<assistant>"
        wanted.prompt = Prompt(tuple(text.encode()), {}, None)

    def prompt_after(reply: dict[str, Any]) -> str:
        found = asyncio.run(AppDoor(app).prompt(Asked({}, {"headers": []}), [user("hi"), reply]))
        return bytes(found.ids).decode()

    assert prompt_after(assistant("see", call("c1"))) == "<user>hi<assistant>see<tool>"
    assert [each["tool_call_id"] for each in asked_for] == ["c1", "c1"]
    assert prompt_after(assistant("done")) == "<user>hi<assistant>done<user>"
