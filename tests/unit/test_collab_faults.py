"""Engines that die, fail or fall silent under the virtual model: no turn is lost, and every loss is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.collab_fakes import LOOK, FakeEngine, Front, about_of, front, quick, reply_of, run, until

ASK = [{"role": "user", "content": "find it"}]


@pytest.mark.parametrize("fault", [{"dies_after": -1}, {"dies_after": 1}, {"status": 503}, {"status": 500}])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_turn_whose_engine_fails_is_answered_by_the_other_one(fault: dict[str, int], is_stream: bool) -> None:
    async def test() -> None:
        async with front(FakeEngine("big", **fault), settings=quick()) as live:
            if is_stream:
                chunks = await live.stream(ASK)
                text, _, reason = reply_of(chunks)
                told = about_of(chunks)
            else:
                status, body, headers = await live.chat(ASK)
                assert (status, headers["x-agentinfer-reason"]) == (200, "model_unavailable")
                text, reason = body["choices"][0]["message"]["content"], body["choices"][0]["finish_reason"]
                told = body["agentinfer"]["collab"]
            assert reason == "stop"
            assert (told["model"], told["reason"], told["unavailable"]) == ("small", "model_unavailable", ["large"])
            if not (is_stream and fault == {"dies_after": 1}):
                assert text == "one two three"

    run(test)


def test_a_stream_whose_engine_dies_is_continued_as_one_reply() -> None:
    async def test() -> None:
        large = FakeEngine("big", dies_after=2)
        small = FakeEngine("little", pieces=("and ", "more"))
        async with front(large, small) as live:
            chunks = await live.stream(ASK, max_tokens=10, stream_options={"include_usage": True})
            text, _, reason = reply_of(chunks)
            assert (text, reason) == ("one two and more", "stop")
            (taken_up,) = small.turns
            assert taken_up["messages"] == [*ASK, {"role": "assistant", "content": "one two "}]
            assert taken_up["continue_final_message"] is True
            assert taken_up["max_tokens"] == 8
            assert len({chunk["id"] for chunk in chunks}) == 1
            roles = [choice["delta"].get("role") for chunk in chunks for choice in chunk["choices"]]
            assert roles.count("assistant") == 1
            told = about_of(chunks)
            assert told["taken_up_mid_reply"] is True
            assert chunks[-1]["usage"]["completion_tokens"] == 4
            # The session knows the reply as the client does: its next turn is recognised by it.
            history = [*ASK, {"role": "assistant", "content": "one two and more"}, {"role": "user", "content": "on"}]
            large.dies_after = None
            await until(lambda: live.turns.engines["large"].is_up)  # type: ignore[index]
            _, body, _ = await live.chat(history)
            assert body["agentinfer"]["collab"]["session"] == told["session"]
            assert body["agentinfer"]["collab"]["step"] == 1

    run(test)


def test_an_error_in_the_stream_is_the_engines_or_the_requests() -> None:
    async def test() -> None:
        async with front(FakeEngine("big", fails_after=2)) as live:
            text, _, reason = reply_of(await live.stream(ASK))
            assert (text, reason) == ("one two one two three", "stop")
            assert live.turns.engines["large"].is_up  # type: ignore[index]
            live.large.status_in_stream = 400
            chunks = await live.stream(ASK)
            assert chunks[-1]["error"]["code"] == 400
            assert len(live.small.turns) == 1

    run(test)


def test_half_a_tool_call_never_reaches_the_client() -> None:
    async def test() -> None:
        other = {**LOOK, "id": "call_2"}
        large = FakeEngine("big", pieces=("I ", "look"), calls=(LOOK,), dies_after=2)
        small = FakeEngine("little", pieces=(" there",), calls=(other,))
        async with front(large, small) as live:
            chunks = await live.stream(ASK)
            text, calls, reason = reply_of(chunks)
            assert (text, reason) == ("I look there", "tool_calls")
            assert [piece["id"] for piece in calls if "id" in piece] == ["call_2"]

    run(test)


def test_a_reply_bound_by_a_grammar_is_not_continued_but_told_to_be_broken() -> None:
    async def test() -> None:
        async with front(FakeEngine("big", dies_after=2)) as live:
            chunks = await live.stream(ASK, response_format={"type": "json_object"})
            assert chunks[-1]["error"]["code"] == 503
            assert live.small.turns == []
            # Before a word of it went out it is begun anew like any other.
            live.large.dies_after = 0
            await until(lambda: live.turns.engines["large"].is_up)  # type: ignore[index]
            text, _, _ = reply_of(await live.stream(ASK, response_format={"type": "json_object"}))
            assert text == "one two three"

    run(test)


def test_a_killed_engine_is_left_out_and_taken_back() -> None:
    async def test() -> None:
        async with front(settings=quick(warm_up_steps=0)) as live:
            await live.small.stop()
            _, body, _ = await live.chat(ASK)
            assert body["agentinfer"]["collab"] == {
                "model": "large",
                "reason": "model_unavailable",
                "step": 0,
                "session": body["agentinfer"]["collab"]["session"],
                "unavailable": ["small"],
            }
            assert (await live.get("/health"))[1]["engines"] == {"large": "up", "small": "down"}
            live.turns.sessions.get(body["agentinfer"]["collab"]["session"]).read["small"].size_bytes = 7  # type: ignore
            await live.small.start()
            await until(lambda: live.turns.engines["small"].is_up)  # type: ignore[index]
            await until(lambda: all(session.read["small"].size_bytes == 0 for session in live.turns.sessions))  # type: ignore[index]
            _, body, _ = await live.chat([{"role": "user", "content": "another task"}])
            assert body["agentinfer"]["collab"]["model"] == "small"

    run(test)


def test_with_both_engines_down_the_session_stays_where_it_was() -> None:
    async def test() -> None:
        async with front() as live:
            _, body, _ = await live.chat(ASK, agentinfer={"session": "s"})
            await live.settled("s")
            await live.large.stop()
            await live.small.stop()
            history = [*ASK, body["choices"][0]["message"], {"role": "user", "content": "go on"}]
            for _ in range(2):
                status, refused, _ = await live.chat(history, agentinfer={"session": "s"})
                assert (status, refused["type"]) == (503, "ServiceUnavailableError")
                assert "sent again" in refused["message"]
            assert (await live.get("/health"))[0] == 503
            await live.large.start()
            await live.small.start()
            await until(lambda: all(engine.is_up for engine in live.turns.engines.values()))
            _, body, _ = await live.chat(history, agentinfer={"session": "s"})
            assert (body["agentinfer"]["collab"]["step"], body["agentinfer"]["collab"]["reason"]) == (1, "warm_up")

    run(test)


def test_an_engine_that_falls_silent_loses_its_turns_to_the_other_one() -> None:
    async def test() -> None:
        large = FakeEngine("big", gate=asyncio.Event())
        async with front(large) as live:
            asking = asyncio.create_task(live.stream(ASK))
            await until(lambda: large.turns)
            await asyncio.sleep(0.1)
            # What the watch does after so many questions without an answer.
            now_s = asyncio.get_running_loop().time()
            live.turns.engines["large"].found_down("no answer", now_s)  # type: ignore[index]
            text, _, _ = reply_of(await asking)
            assert text == "one two one two three"

    run(test)


def test_what_came_after_the_question_is_not_let_go_for_its_answer() -> None:
    async def test() -> None:
        large = FakeEngine("big", gate=asyncio.Event())
        async with front(large) as live:
            asked_s = asyncio.get_running_loop().time()
            await asyncio.sleep(0.02)
            asking = asyncio.create_task(live.stream(ASK))
            await until(lambda: large.turns)
            live.turns.engines["large"].found_down("refused", asked_s)  # type: ignore[index]
            assert large.gate is not None
            large.gate.set()
            chunks = await asking
            assert (reply_of(chunks)[0], about_of(chunks)["model"]) == ("one two three", "large")

    run(test)


def test_an_engine_that_is_believed_down_is_asked_before_a_turn_is_lost() -> None:
    async def test() -> None:
        seldom = replace(quick(), health_period_s=60.0)
        async with front(None, FakeEngine("little", dies_after=-1), seldom) as live:

            async def asked(*believed_down: str) -> list[str] | None:
                for model, engine in live.turns.engines.items():
                    engine.is_up = model not in believed_down
                status, body, _ = await live.chat(ASK)
                about = body["agentinfer"]["collab"]
                assert (status, about["model"]) == (200, "large")
                found: list[str] | None = about.get("unavailable")
                return found

            # The watch's first look may still come in between.
            while await asked("large") != ["small"]:
                pass
            await asked("large", "small")

    run(test)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_ends_its_request_in_the_engine(is_stream: bool) -> None:
    async def test() -> None:
        large = FakeEngine("big", gate=asyncio.Event())
        async with front(large) as live:
            body = {"model": "collab", "messages": ASK, "stream": is_stream}
            asking = asyncio.create_task(live.http.post(f"{live.url}/v1/chat/completions", json=body))
            await until(lambda: large.turns)
            if is_stream:
                (await asking).close()
            else:
                asking.cancel()
            await until(lambda: large.cut_turns)
            large.gate.set()
            _, body, _ = await live.chat(ASK)
            assert body["agentinfer"]["collab"]["step"] == 0

    run(test)


def test_a_check_that_fails_or_takes_too_long_is_a_missing_verdict() -> None:
    async def test() -> None:
        small = FakeEngine("little", check_gate=asyncio.Event())
        settings = replace(quick(warm_up_steps=0, missing_limit=2), check_timeout_s=0.05)
        async with front(small=small, settings=settings) as live:
            messages, seen = ASK, []
            for _ in range(3):
                _, body, _ = await live.chat(messages)
                told = body["agentinfer"]["collab"]
                seen.append((told["model"], told["reason"]))
                await live.settled(told["session"])
                messages = [*messages, body["choices"][0]["message"], {"role": "user", "content": "go on"}]
            assert seen == [("small", "opening"), ("small", "no_verdict"), ("large", "verdicts_missing")]

    run(test)


def test_a_prefill_that_fails_is_the_turns_own_work() -> None:
    async def test() -> None:
        small = FakeEngine("little", prefill_status=500)
        async with front(small=small) as live:
            _, body, _ = await live.chat([{"role": "user", "content": "find it " * 200}])
            await live.settled(body["agentinfer"]["collab"]["session"])
            assert len(small.prefills) == 1
            assert live.turns.engines["small"].is_up  # type: ignore[index]

    run(test)


def test_both_engines_lost_in_one_turn_is_said_in_the_stream() -> None:
    async def test() -> None:
        async with front(FakeEngine("big", dies_after=1), FakeEngine("little", dies_after=1)) as live:
            chunks = await live.stream(ASK)
            assert chunks[-1]["error"]["code"] == 503
            assert _steps(live) == 0

    run(test)


def _steps(live: Front) -> int:
    return sum(len(session.trajectory.transitions) for session in live.turns.sessions)
