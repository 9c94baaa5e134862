"""The virtual model on the Responses and Messages APIs: the model whose turn it is, byte for byte."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.collab_fakes import FakeEngine, Front, front, quick, run, until

ASK = [{"role": "user", "content": "find it"}]
TOOL = {"name": "look", "description": "Look.", "input_schema": {"type": "object", "properties": {}}}


async def message(live: Front, messages: list[dict[str, Any]], **fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
    body = {"model": "collab", "messages": messages, "max_tokens": 5, **fields}
    headers = {"anthropic-version": "2023-06-01"}
    async with live.http.post(f"{live.url}/v1/messages", json=body, headers=headers) as answer:
        assert answer.status == 200
        return await answer.json(), dict(answer.headers)


def test_a_messages_session_takes_its_steps_and_is_judged() -> None:
    async def test() -> None:
        async with front() as live:
            history, seen = ASK, []
            for _ in range(3):
                body, headers = await message(live, history, tools=[TOOL])
                seen.append((headers["x-agentinfer-model"], headers["x-agentinfer-reason"], body["by"]))
                (session,) = live.turns.sessions
                await live.settled(session.session_id)
                result = {"type": "tool_result", "tool_use_id": "use_1", "content": "found"}
                reply = {"role": "assistant", "content": body["content"]}
                history = [*history, reply, {"role": "user", "content": [result]}]
            assert seen == [
                ("large", "opening", "big-model"),
                ("large", "warm_up", "big-model"),
                ("small", "warm_up_done", "little-model"),
            ]
            assert live.small.turns[0]["model"] == "little-model"
            # The check is asked on the chat API, in its forms.
            check = live.large.checks[0]
            assert [each["role"] for each in check["messages"]] == ["user", "assistant", "tool", "user"]
            assert check["tools"][0]["function"]["name"] == "look"
            assert check["tools"][0]["function"]["parameters"] == TOOL["input_schema"]

    run(test)


def test_a_response_that_is_gone_on_from_stays_with_its_engine() -> None:
    async def test() -> None:
        async with front(settings=quick(warm_up_steps=1)) as live:

            async def respond(**fields: Any) -> tuple[str, str]:
                body = {"model": "collab", "input": "find it", **fields}
                async with live.http.post(f"{live.url}/v1/responses", json=body) as answer:
                    return (await answer.json())["id"], answer.headers["x-agentinfer-reason"]

            first, reason = await respond()
            assert (first, reason) == ("resp-big-model-1", "opening")
            second, reason = await respond(previous_response_id=first)
            assert (second, reason) == ("resp-big-model-2", "pinned")

    run(test)


def test_an_engine_lost_before_its_answer_is_replaced() -> None:
    async def test() -> None:
        async with front(FakeEngine("big", dies_after=-1)) as live:
            body, headers = await message(live, ASK)
            assert body["by"] == "little-model"
            assert headers["x-agentinfer-reason"] == "model_unavailable"

    run(test)


def test_an_answer_lost_in_its_middle_is_cut_and_is_no_step() -> None:
    async def test() -> None:
        async with front(FakeEngine("big", dies_after=20)) as live:
            with pytest.raises(aiohttp.ClientError):
                await message(live, ASK)
            live.large.dies_after = None
            await until(lambda: live.turns.engines["large"].is_up)  # type: ignore[index]
            _, headers = await message(live, ASK)
            assert headers["x-agentinfer-reason"] == "opening"

    run(test)
