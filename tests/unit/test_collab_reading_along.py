"""Reading ahead while the other model answers: begun with the turn, left alone by it, ended by a turn of its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings
from agentinfer.config import AgentInferConfig, CollabConfig
from agentinfer.runtime.collab.front import front_settings, with_warming_chosen
from tests.collab_fakes import FakeEngine, front, quick, run, until

LONG = "find it " * 200
SESSION = {"session": "s"}


def along(**collab: Any) -> FrontSettings:
    return replace(quick(**collab), warms_in_turns=True)


def grown(messages: list[dict[str, Any]], body: dict[str, Any]) -> list[dict[str, Any]]:
    return [*messages, body["choices"][0]["message"], {"role": "user", "content": LONG}]


@pytest.mark.parametrize("is_on", [True, False])
def test_the_silent_model_reads_the_prompt_that_the_other_one_answers(is_on: bool) -> None:
    async def test() -> None:
        large = FakeEngine("big", gate=asyncio.Event())
        ask = [{"role": "user", "content": LONG}]
        async with front(large, settings=replace(along(), warms_in_turns=is_on)) as live:
            turn = asyncio.create_task(live.chat(ask, agentinfer=SESSION))
            await until(lambda: large.turns)
            if is_on:
                await until(lambda: live.small.prefills)
                assert live.small.prefills[0]["messages"] == ask
            else:
                await asyncio.sleep(0.1)
                assert live.small.prefills == []
            assert large.gate is not None
            large.gate.set()
            await turn

    run(test)


@pytest.mark.parametrize(
    ("option", "shares_device", "reads_ahead"),
    [
        (None, False, "always"),
        (None, True, "between_turns"),
        (True, True, "always"),
        (False, False, "between_turns"),
    ],
)
def test_it_is_the_rule_where_the_engines_share_no_device(
    option: bool | None, shares_device: bool, reads_ahead: str
) -> None:
    config = AgentInferConfig(collab=CollabConfig("small", collab_warm_in_turns=option))
    assert front_settings(with_warming_chosen(config, shares_device), None).reads_ahead == reads_ahead


def test_a_turn_of_the_other_model_leaves_reading_ahead_to_go_on_with_what_is_new() -> None:
    async def test() -> None:
        large = FakeEngine("big", pieces=("word ",) * 300)
        small = FakeEngine("little", prefill_gate=asyncio.Event())
        async with front(large, small, along(warm_up_steps=3)) as live:
            messages = [{"role": "user", "content": LONG}]
            for _ in range(2):
                _, body, _ = await live.chat(messages, agentinfer=SESSION)
                messages = grown(messages, body)
            # Each prompt and each reply adds enough, so each takes the place of the one before.
            await until(lambda: len(small.prefills) == 4)
            assert [len(each["messages"]) for each in small.prefills] == [1, 2, 3, 4]
            await until(lambda: small.cut_prefills == 3)
            assert small.prefill_gate is not None
            small.prefill_gate.set()
            await live.settled("s")
            # 90 tokens were computed ahead, as the fake engine says, so the result is what is new to the third turn.
            _, shown = await live.get("/agentinfer/sessions/s")
            assert shown["collab"]["is_warming"] is False
            assert live.turns.sessions.get("s").read["small"].ahead_tokens == 90  # type: ignore[union-attr,index]

    run(test)


def test_a_turn_of_its_own_ends_it() -> None:
    async def test() -> None:
        small = FakeEngine("little", prefill_gate=asyncio.Event())
        async with front(small=small, settings=along(warm_up_steps=1)) as live:
            messages = [{"role": "user", "content": LONG}]
            _, body, _ = await live.chat(messages, agentinfer=SESSION)
            await until(lambda: small.prefills)
            _, second, _ = await live.chat(grown(messages, body), agentinfer=SESSION)
            assert second["agentinfer"]["collab"]["model"] == "small"
            await until(lambda: small.cut_prefills == len(small.prefills))
            # It reads for the model that is silent now.
            await until(lambda: live.large.prefills)

    run(test)


def test_a_turn_that_moves_to_it_ends_it() -> None:
    async def test() -> None:
        large = FakeEngine("big", dies_after=1, pieces=("one ", "two "))
        small = FakeEngine("little", prefill_gate=asyncio.Event())
        async with front(large, small, along()) as live:
            _, body, _ = await live.chat([{"role": "user", "content": LONG}], agentinfer=SESSION)
            assert body["agentinfer"]["collab"]["reason"] == "model_unavailable"
            assert len(small.prefills) == 1
            await until(lambda: small.cut_prefills == 1)

    run(test)


def test_an_engine_without_the_prefill_route_reads_between_turns_only() -> None:
    async def test() -> None:
        small = FakeEngine("little", is_ours=False)
        async with front(small=small, settings=along(warm_up_steps=3)) as live:
            messages = [{"role": "user", "content": LONG}]
            for _ in range(2):
                _, body, _ = await live.chat(messages, agentinfer=SESSION)
                await live.settled("s")
                messages = grown(messages, body)
            assert [each["max_tokens"] for each in small.turns] == [1, 1]  # behind each turn, none beside the second

    run(test)
