"""What the scheduler is told between turns: time while turns run, tools called, sessions that are gone."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from agentinfer.clock import ManualClock
from agentinfer.metrics import Metrics, SchedulingMetrics
from agentinfer.runtime.follower import EngineFacts, TurnFollower
from agentinfer.runtime.scheduling import channel as channel_module
from agentinfer.runtime.scheduling.channel import SchedulerChannel
from agentinfer.sessions import SessionTable


class Server:
    """A follower over a channel that writes down what would be sent."""

    def __init__(self, max_sessions: int = 10, is_speed_given: bool = False) -> None:
        from prometheus_client import CollectorRegistry

        ids = (f"s{n}" for n in itertools.count())
        self.clock = ManualClock()
        self.sent: list[tuple[float, list[Any], list[str]]] = []
        self.speeds: list[float | None] = []
        self.registry = CollectorRegistry()
        self.channel = SchedulerChannel(self.clock, self._send, SchedulingMetrics(self.registry), is_speed_given)
        self.table = SessionTable(max_sessions, 60, self.clock, lambda: next(ids), on_gone=self.channel.session_gone)
        self.follower = TurnFollower(
            self.table,
            self.clock,
            Metrics(CollectorRegistry()),
            EngineFacts("m", "cpu", 1),
            about={},
            channel=self.channel,
        )

    def _send(self, now_s: float, called: list[Any], ended: list[str], prefill_tokens_per_s: float | None) -> None:
        self.sent.append((now_s, called, ended))
        self.speeds.append(prefill_tokens_per_s)

    def turn(self, session: str, outcome: Any = "ok", tool: str | None = None, last: bool = False) -> None:
        hints = {"session": session, **({"last": True} if last else {})}
        followed = self.begin(session, hints)
        followed.observe({"prompt_tokens": 5, "completion_tokens": 2, "id": "r"})
        self.clock.advance(1.0)
        calls = [{"id": "c", "type": "function", "function": {"name": tool, "arguments": "{}"}}] if tool else None
        message = {"role": "assistant", "content": "x", **({"tool_calls": calls} if calls else {})}
        self.follower.finish(
            followed, outcome, "application/json", json.dumps({"choices": [{"message": message}]}).encode()
        )

    def begin(self, session: str, hints: dict[str, Any] | None = None) -> Any:
        body = {"messages": [{"role": "user", "content": "hi"}], "agentinfer": hints or {"session": session}}
        followed = self.follower.begin("/v1/chat/completions", body, {})
        assert followed is not None
        return followed

    def ended(self) -> list[str]:
        return [name for _, _, names in self.sent for name in names]


def test_tool_call_is_told_with_when_it_began() -> None:
    server = Server()
    server.turn("a", tool="search")
    assert server.sent == [(1.0, [("a", ["search"], 1.0)], [])]


def test_session_is_gone_with_its_last_turn_or_its_client_or_when_it_is_closed() -> None:
    server = Server()
    server.turn("last", last=True)
    server.turn("left", outcome="client_gone")
    server.turn("closed", tool="search")
    assert server.table.close("closed")
    assert server.ended() == ["last", "left", "closed"]


def test_session_whose_client_left_one_of_two_turns_is_not_gone() -> None:
    server = Server()
    server.begin("a")
    server.turn("a", outcome="client_gone")
    assert server.ended() == []


def test_expired_and_crowded_out_sessions_are_gone() -> None:
    server = Server(max_sessions=1)
    server.turn("a")
    server.turn("b")
    assert server.ended() == ["a"]
    server.clock.advance(61)
    server.table.expire()
    assert server.ended() == ["a", "b"]


@pytest.fixture
def fast_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "TICK_S", 0.001)


def test_time_is_told_while_turns_run_and_shortly_after(fast_ticks: None) -> None:
    server = Server()

    async def live() -> None:
        task = asyncio.create_task(server.channel.keep_time())
        await asyncio.sleep(0.05)
        assert server.sent == []
        followed = server.begin("a")
        await asyncio.sleep(0.05)
        assert len(server.sent) > 3
        assert server.sent[-1] == (0.0, [], [])
        server.follower.finish(followed, "error", "application/json", b"{}")
        server.clock.advance(channel_module.GRACE_S / 2)
        server.sent.clear()
        await asyncio.sleep(0.05)
        assert server.sent[-1] == (channel_module.GRACE_S / 2, [], [])
        server.clock.advance(channel_module.GRACE_S)
        await asyncio.sleep(0.05)
        server.sent.clear()
        await asyncio.sleep(0.05)
        assert server.sent == []
        task.cancel()

    asyncio.run(live())


def test_status_shows_the_schedulers_latest_figures_and_their_age() -> None:
    server = Server()
    assert server.follower.status()["scheduling"] is None
    server.channel.heard({"waiting": 2})
    server.clock.advance(1.5)
    assert server.follower.status()["scheduling"] == {"waiting": 2, "age_s": 1.5}


def test_measured_speed_comes_back_to_all_ranks_where_it_changed() -> None:
    server = Server()
    for speed in (None, 100.0, 105.0, 300.0):
        server.channel.heard({"measured_prefill_tokens_per_s": speed})
        server.channel.session_gone("a")
    server.channel.session_gone("a")
    assert server.speeds == [None, 100.0, None, 300.0, None]


def test_given_speed_is_not_measured_away() -> None:
    server = Server(is_speed_given=True)
    server.channel.heard({"measured_prefill_tokens_per_s": 100.0})
    server.channel.session_gone("a")
    assert server.speeds == [None]


def test_figures_become_metrics() -> None:
    server = Server()
    server.channel.heard({"members": 3, "held": 2, "waiting": 4, "joined": 5, "bound_s": 9.5})
    server.channel.heard({"members": 1, "joined": 7})

    def value(name: str, **labels: str) -> float | None:
        return server.registry.get_sample_value(name, labels)

    assert value("agentinfer_sched_sessions", standing="members") == 1
    assert value("agentinfer_sched_sessions", standing="held") == 2
    assert value("agentinfer_sched_waiting_turns") == 4
    assert value("agentinfer_sched_events_total", event="joined") == 7
    assert value("agentinfer_sched_wait_bound_seconds") == 9.5
