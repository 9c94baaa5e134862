"""The virtual model before two engines: who gets a turn, what the client sees, what happens between the turns."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tests.collab_fakes import LOOK, FakeEngine, about_of, front, quick, reply_of, run, until

ASK = [{"role": "user", "content": "find it"}]


def after(messages: list[dict[str, Any]], body: dict[str, Any]) -> list[dict[str, Any]]:
    """The history after a reply and what its call, if any, returned."""
    message = body["choices"][0]["message"]
    calls = message.get("tool_calls") or ()
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "found"} for call in calls]
    return [*messages, message, *(results or [{"role": "user", "content": "go on"}])]


def test_the_large_model_opens_and_the_small_one_goes_on() -> None:
    async def test() -> None:
        large, small = FakeEngine("big", calls=(LOOK,)), FakeEngine("little", calls=(LOOK,))
        async with front(large, small) as live:
            messages, seen = ASK, []
            for _ in range(4):
                status, body, headers = await live.chat(messages, tools=[{"type": "function"}], temperature=0.5)
                assert status == 200
                assert body["model"] == "collab"
                told = body["agentinfer"]["collab"]
                assert headers["x-agentinfer-model"] == told["model"]
                assert headers["x-agentinfer-reason"] == told["reason"]
                seen.append((told["model"], told["reason"], told["step"]))
                await live.settled(told["session"])
                messages = after(messages, body)
            assert seen == [
                ("large", "opening", 0),
                ("large", "warm_up", 1),
                ("small", "warm_up_done", 2),
                ("small", "progress", 3),
            ]
            assert len(large.turns) == len(small.turns) == 2
            sent = small.turns[0]
            assert sent["model"] == "little"
            assert sent["temperature"] == 0.5
            assert sent["tools"] == [{"type": "function"}]
            assert sent["agentinfer"] == {"session": told["session"]}

    run(test)


def test_a_doubtful_step_of_the_small_model_brings_the_large_one_back() -> None:
    async def test() -> None:
        small = FakeEngine("little", verdict=lambda body: "FALSE")
        async with front(small=small, settings=quick(warm_up_steps=0)) as live:
            _, first, _ = await live.chat(ASK)
            session = first["agentinfer"]["collab"]["session"]
            await live.settled(session)
            _, second, _ = await live.chat(after(ASK, first))
            told = second["agentinfer"]["collab"]
            assert (told["model"], told["reason"], told["session"]) == ("large", "no_progress", session)
            _, shown = await live.get(f"/agentinfer/collab/sessions/{session}")
            (row,) = shown["transitions"]
            assert (row["model"], row["verdict"], row["reason"]) == ("small", "no_progress", "no_progress")
            assert row["why"].startswith("it found one of the facts")

    run(test)


def test_the_check_goes_to_the_model_that_spoke_with_the_tools_of_its_turn() -> None:
    async def test() -> None:
        large = FakeEngine("big", calls=(LOOK,))
        async with front(large) as live:
            tools = [{"type": "function", "function": {"name": "look"}}]
            _, body, _ = await live.chat(ASK, tools=tools, chat_template_kwargs={"a": 1})
            session = body["agentinfer"]["collab"]["session"]
            await live.settled(session)
            (check,) = large.checks
            assert live.small.checks == []
            assert check["messages"][:1] == ASK
            assert [message["role"] for message in check["messages"]] == ["user", "assistant", "tool", "user"]
            assert check["tools"] == tools
            assert check["chat_template_kwargs"]["a"] == 1
            assert check["temperature"] == 0
            assert check["agentinfer"]["session"] != session
            assert check["agentinfer"]["parent"] == session
            assert check["agentinfer"]["last"] is True

    run(test)


def test_each_engine_reads_the_checks_grammar_before_it_is_needed() -> None:
    async def test() -> None:
        async with front() as live:
            await until(lambda: live.large.rehearsals and live.small.rehearsals)
            (rehearsal,) = live.large.rehearsals
            assert rehearsal["max_tokens"] == 1
            assert "===PROGRESS===" in rehearsal["regex"]
            _, text = await live.get("/metrics")
            assert "agentinfer_collab_checks_total{" not in text

    run(test)


def test_what_a_router_before_replicas_goes_by_is_said_with_all_of_a_session() -> None:
    async def test() -> None:
        async with front() as live:
            ask = [{"role": "user", "content": "find it " * 200}]
            _, body, _ = await live.chat(ask, headers={"x-smg-routing-key": "k"})
            await live.settled(body["agentinfer"]["collab"]["session"])
            assert live.large.routing_keys.count("k") == 2  # the turn and its check
            assert live.small.routing_keys.count("k") == 1  # the prefill
            _, body, _ = await live.chat(ask, agentinfer={"session": "its \u00f6wn"})
            await live.settled("its \u00f6wn")
            assert live.large.routing_keys.count("its%20%C3%B6wn") == 2
            assert live.small.routing_keys.count("its%20%C3%B6wn") == 1

    run(test)


def test_without_warming_the_silent_model_is_left_alone() -> None:
    async def test() -> None:
        async with front(settings=replace(quick(), warms=False)) as live:
            _, body, _ = await live.chat([{"role": "user", "content": "find it " * 200}])
            await live.settled(body["agentinfer"]["collab"]["session"])
            assert live.small.prefills == []

    run(test)


def test_the_silent_model_computes_ahead_and_the_switch_finds_it() -> None:
    async def test() -> None:
        async with front(FakeEngine("big", pieces=("word ",) * 300)) as live:
            messages = ASK
            for _ in range(2):
                _, body, _ = await live.chat(messages)
                session = body["agentinfer"]["collab"]["session"]
                await live.settled(session)
                messages = after(messages, body)
            ahead = live.small.prefills[-1]
            assert ahead["messages"] == messages[:-1]
            assert ahead["agentinfer"] == {"session": session}
            assert ahead["model"] == "little-model"
            _, body, _ = await live.chat(messages)
            assert body["agentinfer"]["collab"]["model"] == "small"
            _, status = await live.get("/agentinfer/status")
            # Of the 500 tokens of the switch's prompt, 410 came after what was computed ahead: 90, all in the cache.
            assert status["collab"]["switches"] == 1
            assert status["collab"]["switch_unseen_tokens"] == 90
            assert status["collab"]["switch_prefilled_share"] == 1.0

    run(test)


def test_an_engine_without_the_prefill_route_is_asked_for_one_token() -> None:
    async def test() -> None:
        small = FakeEngine("little", is_ours=False)
        async with front(small=small) as live:
            _, body, _ = await live.chat([{"role": "user", "content": "find it " * 200}])
            await live.settled(body["agentinfer"]["collab"]["session"])
            assert small.prefills == []
            (ahead,) = small.turns
            assert ahead["max_tokens"] == 1
            assert ahead["messages"][-1]["role"] == "user"
            assert "agentinfer" not in ahead

    run(test)


def test_an_engine_that_does_not_say_what_it_had_cached_is_not_counted_as_cold() -> None:
    async def test() -> None:
        async with front(small=FakeEngine("little", is_ours=False), settings=quick(warm_up_steps=1)) as live:
            _, body, _ = await live.chat(ASK)
            _, body, _ = await live.chat(after(ASK, body))
            assert body["agentinfer"]["collab"]["model"] == "small"
            _, status = await live.get("/agentinfer/status")
            assert status["collab"]["switches"] == 0
            assert status["collab"]["switch_prefilled_share"] is None

    run(test)


def test_a_pin_decides_one_step() -> None:
    async def test() -> None:
        async with front() as live:
            _, body, _ = await live.chat(ASK, headers={"x-agentinfer-collab": "small"})
            told = body["agentinfer"]["collab"]
            assert (told["model"], told["reason"]) == ("small", "pinned")
            _, body, _ = await live.chat(after(ASK, body), agentinfer={"collab": {"model": "large"}, "session": "a"})
            assert body["agentinfer"]["collab"]["model"] == "large"
            assert live.large.turns[-1]["agentinfer"] == {"session": "a"}

    run(test)


@pytest.mark.parametrize(
    ("fields", "headers", "part"),
    [
        ({"agentinfer": {"turn": "three"}}, {}, "agentinfer.turn"),
        ({"agentinfer": {"collab": {"model": "huge"}}}, {}, "agentinfer.collab.model"),
        ({"agentinfer": {"collab": "large"}}, {}, "agentinfer.collab"),
        ({}, {"x-agentinfer-collab": "both"}, "x-agentinfer-collab"),
        ({"messages": []}, {}, "messages"),
    ],
)
def test_what_is_malformed_is_refused_in_the_shape_of_the_api(
    fields: dict[str, Any], headers: dict[str, str], part: str
) -> None:
    async def test() -> None:
        async with front() as live:
            status, body, _ = await live.chat(fields.pop("messages", ASK), headers, **fields)
            assert status == 400
            assert (body["object"], body["type"], body["code"]) == ("error", "BadRequestError", 400)
            assert part in body["message"]
            assert body["param"].startswith(part.rpartition(":")[0] or part[:5])
            assert live.large.turns == live.small.turns == []

    run(test)


def test_fields_that_make_no_sense_are_the_engines_to_refuse() -> None:
    async def test() -> None:
        async with front(FakeEngine("big", status=400)) as live:
            for fields in ({"stream": True, "stream_options": "usage"}, {"tools": 3}, {"n": "two"}):
                status, body, _ = await live.chat(ASK, **fields)
                assert (status, body["message"]) == (400, "no")
            assert [turn.get("stream_options") for turn in live.large.turns] == ["usage", None, None]

    run(test)


def test_bodies_that_are_no_json_and_unknown_models_are_refused() -> None:
    async def test() -> None:
        async with front() as live:
            for raw, status in ((b"{", 400), (b"[1]", 400), (b'{"model": "gpt-9", "messages": []}', 404)):
                async with live.http.post(f"{live.url}/v1/chat/completions", data=raw) as answer:
                    assert answer.status == status
                    assert (await answer.json())["object"] == "error"

    run(test)


def test_an_engines_own_refusal_is_passed_on_and_is_no_step() -> None:
    async def test() -> None:
        async with front(FakeEngine("big", status=400)) as live:
            status, body, _ = await live.chat(ASK, agentinfer={"session": "s"})
            assert (status, body["message"]) == (400, "no")
            live.large.status = 200
            _, body, _ = await live.chat(ASK, agentinfer={"session": "s"})
            assert body["agentinfer"]["collab"]["step"] == 0
            assert live.small.turns == []

    run(test)


def test_a_stream_passes_text_on_and_says_at_its_end_who_spoke() -> None:
    async def test() -> None:
        async with front(FakeEngine("big", calls=(LOOK,))) as live:
            chunks = await live.stream(ASK, stream_options={"include_usage": True})
            text, calls, reason = reply_of(chunks)
            assert (text, reason) == ("one two three", "tool_calls")
            assert "".join(piece["function"]["arguments"] for piece in calls) == LOOK["function"]["arguments"]
            assert {chunk["model"] for chunk in chunks} == {"collab"}
            assert about_of(chunks)["model"] == "large"
            assert chunks[-1]["usage"]["prompt_tokens"] == 100
            assert "agentinfer" in chunks[-1]
            # Without asking for it the client gets no usage chunk, and the object all the same.
            chunks = await live.stream(ASK)
            assert all(chunk["choices"] for chunk in chunks)
            assert about_of(chunks)["reason"] == "opening"

    run(test)


def test_text_reaches_the_client_before_the_reply_is_whole() -> None:
    async def test() -> None:
        large = FakeEngine("big", gate=asyncio.Event())
        async with front(large) as live:
            body = {"model": "collab", "messages": ASK, "stream": True}
            async with live.http.post(f"{live.url}/v1/chat/completions", json=body) as answer:
                assert answer.headers["x-agentinfer-model"] == "large"
                seen = b""
                while b"two" not in seen:
                    seen += await answer.content.readany()
                assert b"three" not in seen
                large.gate.set()
                assert b"[DONE]" in await answer.read()

    run(test)


def test_no_turn_waits_for_a_check_and_one_of_no_more_use_is_ended() -> None:
    async def test() -> None:
        large = FakeEngine("big", check_gate=asyncio.Event())
        async with front(large, settings=quick(warm_up_steps=3)) as live:
            messages = ASK
            for step, model in enumerate(("large", "large", "large", "small")):
                _, body, _ = await live.chat(messages)
                assert (body["agentinfer"]["collab"]["step"], body["agentinfer"]["collab"]["model"]) == (step, model)
                messages = after(messages, body)
                # The second check waits for the first one, which is ended when it can count no more: at the third turn.
                await until(partial(_has_checks, large, (1, 1, 2, 2)[step]))
            # The second one, and the third that waited for it, ended since the small model spoke.
            await until(lambda: large.cut_checks == 2)
            assert len(large.checks) == 2
            session = body["agentinfer"]["collab"]["session"]
            _, shown = await live.get(f"/agentinfer/collab/sessions/{session}")
            assert [row["verdict"] for row in shown["transitions"]] == ["missing", "missing", "missing"]

    run(test)


def test_checks_that_take_longer_than_a_step_give_late_verdicts_rather_than_none() -> None:
    async def test() -> None:
        small = FakeEngine("little", check_gate=asyncio.Event())
        async with front(small=small, settings=quick(warm_up_steps=0)) as live:
            messages = ASK
            for step in range(4):
                _, body, _ = await live.chat(messages)
                messages = after(messages, body)
                # The check of the step before comes back now: one step late, in time for this step's boundary.
                await until(partial(_has_checks, small, max(1, step)))
                if step:
                    running, small.check_gate = small.check_gate, asyncio.Event()
                    assert running is not None
                    running.set()
                    await until(partial(_has_checks, small, step + 1))
            session = body["agentinfer"]["collab"]["session"]
            _, shown = await live.get(f"/agentinfer/collab/sessions/{session}")
            assert [row["verdict"] for row in shown["transitions"]] == ["missing", "progress", "progress"]
            assert shown["late_verdicts"] == 3
            assert small.cut_checks == 0

    run(test)


def test_a_late_verdict_of_the_same_model_counts_at_the_next_boundary() -> None:
    async def test() -> None:
        small = FakeEngine("little", check_gate=asyncio.Event(), gate=asyncio.Event(), verdict=lambda body: "FALSE")
        small.gate.set()
        async with front(small=small, settings=quick(warm_up_steps=0)) as live:
            _, first, _ = await live.chat(ASK)
            session = first["agentinfer"]["collab"]["session"]
            await until(lambda: small.checks)
            small.gate.clear()
            second = asyncio.create_task(live.chat(after(ASK, first)))
            await until(lambda: len(small.turns) == 2)
            small.check_gate.set()
            await asyncio.sleep(0.1)
            small.check_gate.clear()  # the second step gets no verdict of its own in time
            small.gate.set()
            _, body, _ = await second
            _, third, _ = await live.chat(after(after(ASK, first), body))
            assert third["agentinfer"]["collab"]["reason"] == "no_progress"
            _, shown = await live.get(f"/agentinfer/collab/sessions/{session}")
            assert [row["verdict"] for row in shown["transitions"]] == ["missing", "no_progress"]
            assert shown["late_verdicts"] == 1

    run(test)


def test_two_turns_of_one_session_at_once_are_one_step() -> None:
    async def test() -> None:
        large = FakeEngine("big", gate=asyncio.Event())
        async with front(large) as live:
            one = asyncio.create_task(live.chat(ASK, agentinfer={"session": "s"}))
            await until(lambda: large.turns)
            two = asyncio.create_task(live.chat([{"role": "user", "content": "else"}], agentinfer={"session": "s"}))
            await until(lambda: len(large.turns) == 2)
            large.gate.set()
            (_, first, _), (_, second, _) = await one, await two
            reasons = {first["agentinfer"]["collab"]["reason"], second["agentinfer"]["collab"]["reason"]}
            assert reasons == {"opening", "concurrent_turn"}
            _, third, _ = await live.chat(after(ASK, first), agentinfer={"session": "s"})
            assert third["agentinfer"]["collab"]["step"] == 1

    run(test)


def test_a_session_that_says_it_is_over_is_forgotten() -> None:
    async def test() -> None:
        async with front() as live:
            await live.chat(ASK, agentinfer={"session": "s", "last": True})
            assert live.turns.sessions.get("s") is None
            status, _ = await live.get("/agentinfer/collab/sessions/s")
            assert status == 404
            assert live.large.checks == []
            await live.chat(ASK, agentinfer={"session": "t"})
            async with live.http.delete(f"{live.url}/agentinfer/sessions/t") as answer:
                assert answer.status == 200
            assert len(live.turns.sessions) == 0

    run(test)


def test_an_engines_own_name_and_other_routes_go_straight_there() -> None:
    async def test() -> None:
        async with front() as live:
            body = {"model": "little-model", "messages": ASK}
            async with live.http.post(f"{live.url}/v1/chat/completions", json=body) as answer:
                assert (await answer.json())["model"] == "little-model"
            assert live.small.turns == [body]
            async with live.http.post(f"{live.url}/v1/embeddings?x=1", json={"model": "little-model"}) as answer:
                assert (await answer.json())["by"] == "little-model"
            assert live.small.others == [("POST", "/v1/embeddings?x=1")]
            assert (await live.get("/get_model_info"))[1]["by"] == "big-model"
            async with live.http.post(f"{live.url}/v1/completions", json={"model": "collab", "prompt": "a"}) as answer:
                assert (await answer.json())["model"] == "big-model"
            async with live.http.post(f"{live.url}/generate", json={"text": "a"}) as answer:
                assert (await answer.json())["by"] == "big-model"

    run(test)


def test_pages() -> None:
    async def test() -> None:
        async with front() as live:
            await live.chat(ASK, agentinfer={"session": "a/b"})
            await live.settled("a/b")
            _, models = await live.get("/v1/models")
            assert [row["id"] for row in models["data"]] == ["collab", "big-model", "little-model"]
            assert [row["max_model_len"] for row in models["data"]] == [9, 9, 12]
            status, health = await live.get("/health")
            assert (status, health["engines"]) == (200, {"large": "up", "small": "up"})
            _, text = await live.get("/metrics")
            assert 'n{engine="large",a="big-model"} 2.0\nn{engine="small",a="little-model"} 2.0\n' in text
            assert 'm{engine="large"} 1' in text
            assert text.count("# TYPE n counter") == 1
            assert 'agentinfer_collab_steps_total{model="large",reason="opening"} 1.0' in text
            assert 'agentinfer_collab_engine_up{model="small"} 1.0' in text
            _, told = await live.get("/agentinfer/status")
            assert told["engines"]["large"]["agentinfer"] == {"model": "big-model"}
            _, listed = await live.get("/agentinfer/sessions")
            assert [row["id"] for row in listed["sessions"]] == ["a/b"]
            _, one = await live.get("/agentinfer/sessions/a/b")
            assert one["collab"]["last_speaker"] == "large"

    run(test)


def test_flushing_empties_both_caches_or_says_which_it_did_not() -> None:
    async def test() -> None:
        async with front() as live:
            await live.chat(ASK, agentinfer={"session": "s"})
            await live.settled("s")
            async with live.http.post(f"{live.url}/flush_cache") as answer:
                assert answer.status == 200
            assert live.large.others == live.small.others == [("POST", "/flush_cache")]
            session = live.turns.sessions.get("s")
            assert session is not None
            assert all(read.size_bytes == 0 for read in session.read.values())
            await live.small.stop()
            async with live.http.post(f"{live.url}/flush_cache") as answer:
                assert answer.status == 400
                assert "small" in (await answer.json())["message"]

    run(test)


def test_a_key_guards_everything_but_the_probes() -> None:
    async def test() -> None:
        async with front(settings=replace(quick(), api_key="k")) as live:
            status, body, _ = await live.chat(ASK)
            assert (status, body["code"]) == (401, 401)
            status, _, _ = await live.chat(ASK, headers={"Authorization": "Bearer k"})
            assert status == 200
            assert (await live.get("/health"))[0] == 200
            assert (await live.get("/agentinfer/sessions"))[0] == 401

    run(test)


def _has_checks(engine: FakeEngine, number: int) -> bool:
    return len(engine.checks) == number
