"""Whatever sessions interleave, and whatever their checks say: each step goes to the engine that the rules name."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentinfer.collab_lang.controller import Verdict, after_step, opening
from tests.collab_fakes import FakeEngine, Front, front, quick, run

# Rounds of turns at once: by session, what the check of the turn will say.
rounds = st.lists(
    st.dictionaries(st.integers(0, 3), st.sampled_from(["TRUE", "FALSE", "neither"]), min_size=1), max_size=10
)
VERDICTS = {"TRUE": Verdict.PROGRESS, "FALSE": Verdict.NO_PROGRESS, "neither": Verdict.MISSING}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rounds=rounds, warm_up_steps=st.integers(0, 2))
def test_each_step_goes_to_the_engine_that_the_rules_name(rounds: list[dict[int, str]], warm_up_steps: int) -> None:
    async def test() -> None:
        said: dict[str, str] = {}
        engines = [FakeEngine(name, verdict=lambda body: said[body["agentinfer"]["parent"]]) for name in ("a", "b")]
        chosen = quick(warm_up_steps=warm_up_steps, missing_limit=2)
        async with front(*engines, chosen) as live:
            states = defaultdict(lambda: opening(chosen.collab))
            histories: dict[int, list[dict[str, Any]]] = defaultdict(lambda: [{"role": "user", "content": "find it"}])
            for turns in rounds:
                said.update({f"session-{number}": verdict for number, verdict in turns.items()})
                told = await asyncio.gather(*(step(live, number, histories[number]) for number in turns))
                for (number, verdict), about in zip(turns.items(), told, strict=True):
                    state = states[number]
                    assert (about["model"], about["reason"], about["step"]) == (state.model, state.reason, state.steps)
                    states[number] = after_step(state, VERDICTS[verdict], chosen.collab)
            for engine in engines:
                by_name = {"a": "large", "b": "small"}[engine.name]
                transitions = [t for s in live.turns.sessions for t in (*s.trajectory.transitions,)]
                closed = sum(transition.speaker == by_name for transition in transitions)
                still_open = sum(session.last_speaker == by_name for session in live.turns.sessions)
                assert len(engine.turns) == closed + still_open
            live.turns.table.check_integrity()

    run(test)


async def step(live: Front, number: int, history: list[dict[str, Any]]) -> dict[str, Any]:
    """One turn of a session, and what runs after it; what the response says of it."""
    status, body, _ = await live.chat(history, agentinfer={"session": f"session-{number}"})
    assert status == 200
    await live.settled(f"session-{number}")
    history += [body["choices"][0]["message"], {"role": "user", "content": "go on"}]
    return dict(body["agentinfer"]["collab"])
