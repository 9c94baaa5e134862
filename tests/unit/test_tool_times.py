"""What a server learns of the time between turns: from tools, from people, and from those who never come back."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from agentinfer.clock import ManualClock
from agentinfer.metrics import Metrics
from agentinfer.radix_ext.latency_file import LatencyFile, read
from agentinfer.runtime import follower as follower_module
from agentinfer.runtime.follower import EngineFacts, TurnFollower
from agentinfer.sessions import SessionTable
from agentinfer.tool_gaps import NO_TOOL

EXPIRY_S = 600


class Server:
    """A follower over a table, asked by one client whose sessions carry their name."""

    def __init__(self, latency_file: LatencyFile | None = None, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock(5000.0)
        ids = (f"s{number}" for number in itertools.count())
        self.follower = TurnFollower(
            SessionTable(
                max_sessions=10,
                expiry_s=EXPIRY_S,
                clock=self.clock,
                ids=lambda: next(ids),
                on_gone=lambda session_id: self.follower.session_gone(session_id),
            ),
            self.clock,
            Metrics(CollectorRegistry()),
            EngineFacts("m", "cpu", 1),
            about={},
            latency_file=latency_file,
        )

    def turn(self, session: str, *tools: str, last: bool = False, outcome: str = "ok", after_s: float = 0.0) -> None:
        """`after_s` later the session asks, and the answer calls `tools`."""
        self.clock.advance(after_s)
        followed = self.begin(session, last)
        self.finish(followed, tools, outcome)

    def begin(self, session: str, last: bool = False):
        hints = {"session": session, "last": last}
        return self.follower.begin(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": "go"}], "agentinfer": hints}, {}
        )

    def finish(self, followed, tools: tuple[str, ...] = (), outcome: str = "ok") -> None:
        calls = [
            {"id": f"c{n}", "type": "function", "function": {"name": tool, "arguments": "{}"}}
            for n, tool in enumerate(tools)
        ]
        message = {"role": "assistant", "content": "done", **({"tool_calls": calls} if calls else {})}
        raw = json.dumps({"choices": [{"message": message}]}).encode()
        self.follower.finish(followed, outcome, "application/json", raw)

    @property
    def tools(self):
        return self.follower.status()["tools"]


def test_tools_and_people_are_learned_apart():
    server = Server()
    server.turn("a", "bash")
    server.turn("a", after_s=2.0)
    server.turn("a", "bash", "read", after_s=40.0)
    server.turn("a", after_s=9.0)
    assert {name: (tool["count"], tool["latest_s"]) for name, tool in server.tools.items()} == {
        NO_TOOL: (1, 40.0),
        "(several)": (1, 9.0),
        "bash": (1, 2.0),
    }


def test_status_says_how_fresh_a_figure_is():
    server = Server()
    server.turn("a", "bash")
    server.turn("a", after_s=2.0)
    server.clock.advance(30.0)
    assert (server.tools["bash"]["latest_age_s"], server.tools["bash"]["p50_s"]) == (30.0, 2.0)


def test_who_is_forgotten_while_away_never_came_back():
    server = Server()
    for session in ("a", "b", "c"):
        server.turn(session, "submit")
    server.turn("a", after_s=1.0)
    server.turn("b", after_s=1.0)
    server.clock.advance(EXPIRY_S + 1)
    server.follower.table.expire()
    assert server.tools["submit"]["count"] == 2
    assert server.tools["submit"]["never_share"] == pytest.approx(1 / 3, abs=1e-4)
    assert server.tools[NO_TOOL]["never_share"] == 1.0


@pytest.mark.parametrize("how", ["last", "closed"])
def test_who_takes_leave_teaches_nothing(how):
    server = Server()
    server.turn("a", "submit", last=how == "last")
    if how == "closed":
        server.follower.table.close("a")
    server.clock.advance(EXPIRY_S + 1)
    server.follower.table.expire()
    assert server.tools == {}


@pytest.mark.parametrize("outcome", ["error", "client_gone"])
def test_a_failed_turn_asked_again_is_nobody_thinking(outcome):
    server = Server()
    server.turn("a")
    server.turn("a", outcome=outcome, after_s=7.0)
    server.turn("a", after_s=0.1)
    assert server.tools[NO_TOOL]["count"] == 1


def test_turns_side_by_side_are_nobody_thinking():
    server = Server()
    first, second = server.begin("a"), server.begin("a")
    server.finish(first)
    server.clock.advance(3.0)
    third = server.begin("a")
    server.finish(second)
    server.finish(third)
    assert server.tools == {}
    server.turn("a", after_s=8.0)
    assert server.tools[NO_TOOL]["latest_s"] == 8.0


def test_a_restarted_server_shows_what_the_last_one_learned(tmp_path):
    clock = ManualClock(5000.0)
    server = Server(LatencyFile(tmp_path / "latency", clock), clock)
    server.turn("a", "bash")
    server.turn("a", after_s=2.0)
    server.follower.close()
    clock.advance(100.0)
    restarted = Server(LatencyFile(tmp_path / "latency", clock), clock)
    assert restarted.tools == server.tools
    assert restarted.tools["bash"]["latest_age_s"] == 100.0
    restarted.turn("b", "bash")
    restarted.turn("b", after_s=4.0)
    assert restarted.tools["bash"]["count"] == 2


def test_housekeeping_saves_when_it_is_time(tmp_path, monkeypatch):
    monkeypatch.setattr(follower_module, "HOUSEKEEPING_PERIOD_S", 0.001)
    clock = ManualClock(5000.0)
    server = Server(LatencyFile(tmp_path / "latency", clock, save_period_s=60.0), clock)

    async def keep_house(is_done, max_rounds: int) -> None:
        house = asyncio.create_task(server.follower.keep_house())
        for _ in range(max_rounds):
            if is_done():
                break
            await asyncio.sleep(0.001)
        house.cancel()

    server.turn("a", "bash")
    server.turn("a", after_s=2.0)
    asyncio.run(keep_house((tmp_path / "latency").exists, max_rounds=20))
    assert not (tmp_path / "latency").exists(), "too soon"
    clock.advance(60.0)
    asyncio.run(keep_house((tmp_path / "latency").exists, max_rounds=10_000))
    assert read(tmp_path / "latency").histogram("bash").count == 1


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = Server()
    server.turn("a", "bash")
    server.turn("a", after_s=2.0)
    server.follower.close()
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_scheduling_loads_none_of_it():
    code = "import sys, agentinfer.runtime.installation; sys.exit(any('radix_ext' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
