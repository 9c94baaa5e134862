"""A job that is late makes way for the next one, and what was told to stop computing does stop."""

from __future__ import annotations

import asyncio
from typing import Any

from agentinfer.clock import ManualClock, SystemClock
from agentinfer.compress.distiller import Assignment
from agentinfer.compress.note import Line, Note
from agentinfer.compress.settings import Settings
from agentinfer.runtime.compression import jobs
from agentinfer.runtime.prefill.engine import Prompt
from agentinfer.runtime.prefill.warming import Pace, Stride, Warmed, warm
from tests.compress_server import Noting, Server


def test_what_waits_for_the_end_of_a_turn_is_cancelled_at_that_moment() -> None:
    async def story() -> bool:
        has_begun = asyncio.Event()

        async def compute(num_tokens: int) -> int:
            has_begun.set()
            await asyncio.sleep(0)
            return 100

        pace = Pace(SystemClock(), duty_share=1e-6)
        pace.turn_begun()
        task = asyncio.create_task(warm(range(100_000), Warmed(), pace, Stride(), compute))
        await has_begun.wait()
        for _ in range(20):
            await asyncio.sleep(0)  # it rests now
        pace.turn_finished()
        await asyncio.sleep(0)  # its wait is over, and it has not gone on yet
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.2)
        return bool(done) and task.cancelled()

    assert asyncio.run(story())


def test_the_job_after_a_late_one_is_carried_out(monkeypatch) -> None:
    notes: list[Assignment] = []

    async def first_hangs(assignment: Assignment) -> Note:
        notes.append(assignment)
        if len(notes) == 1:
            await asyncio.Event().wait()
        return Note(facts=tuple(Line(f"fact {each.index}", each.index) for each in assignment.observations))

    server = Server(monkeypatch, Noting(first_hangs))
    clock = ManualClock()
    monkeypatch.setattr(server.compression, "_clock", clock)
    turn_ended = server.compression.turn_ended

    def after_a_long_turn(*arguments: Any) -> None:
        clock.advance(2 * Settings().distil_timeout_s if len(notes) == 1 else 0.0)
        turn_ended(*arguments)

    monkeypatch.setattr(server.compression, "turn_ended", after_a_long_turn)

    async def story() -> None:
        for _ in range(10):
            await server.turn()
            await asyncio.sleep(0.01)
        server.compression.close()

    asyncio.run(story())
    assert server.jobs["late"] == 1
    assert server.jobs.get("swapped")


def test_a_warming_that_comes_forward_is_not_late(monkeypatch) -> None:
    server = Server(monkeypatch, warm_timeout_s=0.2, warm_share=1.0, max_rounds=100)

    async def slow(prompt: Prompt, num_tokens: int, session_id: str, now_s: float) -> int:
        await asyncio.sleep(0.05)
        return 64

    monkeypatch.setattr(jobs, "compute", slow)

    async def story() -> None:
        for _ in range(5):
            await server.turn()
        await asyncio.sleep(0.5)
        await server.turn()
        server.compression.close()

    asyncio.run(story())
    assert "late" not in server.jobs
