"""Engines that come and go at any time: a turn is answered whole while one of them lives, and counts exactly once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.collab_fakes import FakeEngine, Front, about_of, front, quick, reply_of, run, until

acts = st.lists(
    st.one_of(
        st.tuples(st.just("kill"), st.sampled_from(["large", "small"])),
        st.tuples(st.just("start"), st.sampled_from(["large", "small"])),
        # The engine cuts its next replies after so many pieces, or not any more.
        st.tuples(st.just("cut"), st.sampled_from(["large", "small"]), st.sampled_from([None, -1, 0, 2])),
        st.tuples(st.just("turn"), st.integers(0, 2), st.booleans()),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts=acts)
def test_every_turn_is_answered_while_an_engine_lives(acts: list[tuple[Any, ...]]) -> None:
    async def test() -> None:
        engines = {"large": FakeEngine("big"), "small": FakeEngine("little")}
        steps: Counter[int] = Counter()
        async with front(*engines.values(), quick(warm_up_steps=1)) as live:
            histories: dict[int, list[dict[str, Any]]] = {}
            for act, *rest in acts:
                if act == "kill":
                    await engines[rest[0]].stop()
                elif act == "start" and engines[rest[0]].runner is None:
                    await engines[rest[0]].start()
                elif act == "cut":
                    engines[rest[0]].dies_after = rest[1]
                elif act == "turn":
                    await believed(live, engines)
                    number, is_stream = rest
                    history = histories.setdefault(number, [{"role": "user", "content": "find it"}])
                    own = {"session": f"session-{number}"}
                    # Cut before any of it went out is as good as dead for a turn that is not streamed.
                    whole = [name for name, each in engines.items() if each.runner and each.dies_after is None]
                    step = await (streamed if is_stream else plain)(live, history, own)
                    assert step is not None or not whole
                    if step is not None:
                        assert step == steps[number]
                        steps[number] += 1
            live.turns.table.check_integrity()
            taken = {session.session_id: session.trajectory for session in live.turns.sessions}
            for number, count in steps.items():
                assert len(taken[f"session-{number}"].transitions) in (count - 1, count)

    run(test)


async def believed(live: Front, engines: dict[str, FakeEngine]) -> None:
    """Waits until the front has seen what lives; what it still believes alive may be dead."""
    for model, engine in live.turns.engines.items():
        if engines[model].runner is not None:
            await until(lambda engine=engine: engine.is_up)


async def plain(live: Front, history: list[dict[str, Any]], own: dict[str, str]) -> int | None:
    """The step's number, None where the turn was not answered."""
    status, body, _ = await live.chat(history, agentinfer=own)
    if status == 503:
        return None
    assert status == 200
    message = body["choices"][0]["message"]
    assert message["content"] == "one two three"
    history += [message, {"role": "user", "content": "go on"}]
    return int(body["agentinfer"]["collab"]["step"])


async def streamed(live: Front, history: list[dict[str, Any]], own: dict[str, str]) -> int | None:
    body = {"model": "collab", "messages": history, "stream": True, "agentinfer": own}
    async with live.http.post(f"{live.url}/v1/chat/completions", json=body) as answer:
        if answer.status == 503:
            return None
        assert answer.status == 200
        chunks = live.chunks(await answer.read())
    if "error" in chunks[-1]:
        return None
    text, _, reason = reply_of(chunks)
    # A reply that was taken up goes on after the pieces that were sent.
    assert text.endswith("one two three")
    assert reason == "stop"
    history += [{"role": "assistant", "content": text}, {"role": "user", "content": "go on"}]
    return int(about_of(chunks)["step"])
