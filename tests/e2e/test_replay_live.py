"""Recorded sessions against the real server: forced replies come out as recorded, and later turns hit their prefix."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from agentinfer.replay import ReplayRun, RunOptions, Session, Trace, perfetto, read_trace, replay
from agentinfer.replay.driver import LoopOptions
from agentinfer.replay.render import reply_text
from agentinfer.replay.truncate import Limits
from tests.live_server import LiveServer
from tests.recorded_turns import wait_for_turns
from tests.replay_fakes import a_session

pytestmark = pytest.mark.e2e


def play(server: LiveServer, sessions: list[Session], **options: Any) -> ReplayRun:
    trace = Trace("made", "test", "0" * 64, sessions)
    made = RunOptions(url=server.url, **{"forced": True, "loop": LoopOptions(concurrency=2), **options})
    return asyncio.run(replay(trace, made))


def test_forced_replies_come_out_as_recorded_and_later_turns_hit_their_prefix(server: LiveServer) -> None:
    sessions = [a_session(f"live-{i}", 4, gap_s=0.05, words_each=40) for i in range(3)]
    result = play(server, sessions).result
    assert (result["sessions_complete"], result["errors"]) == (3, 0)
    assert (result["forced_checked"], result["forced_mismatches"]) == (12, 0)
    assert result["later_turns_hit_rate"] > 0.5
    # A prompt holds all of the one before, its reply included: what is not cached is new.
    by_session: dict[str, list[dict[str, Any]]] = {}
    for sample in result["samples"]["turns"]:
        by_session.setdefault(sample["session"], []).append(sample)
    for turns in by_session.values():
        for before, after in itertools.pairwise(turns):
            assert after["cached_tokens"] >= before["prompt_tokens"]


def test_free_replay_times_the_models_own_replies(server: LiveServer) -> None:
    result = play(server, [a_session("free", 2)], forced=False, max_tokens=8).result
    assert (result["errors"], result["forced_mismatches"]) == (0, None)
    assert all(0 < sample["output_tokens"] <= 8 for sample in result["samples"]["turns"])


def test_the_server_tells_queue_times_for_the_timeline(server: LiveServer) -> None:
    run = play(server, [a_session("queue", 2)])
    names = {event["name"] for event in perfetto.chrome_trace(run.sessions)["traceEvents"] if event["ph"] == "X"}
    assert {"queue", "prefill", "decode"} <= names


def test_the_servers_record_is_replayed_in_turn(server: LiveServer, record_file: Path) -> None:
    original = a_session("recorded", 3, gap_s=0.05)
    (sent,) = play(server, [original]).sessions
    wait_for_turns(record_file, sent.wire_id, len(original.turns))
    [recorded] = [session for session in read_trace(str(record_file)).sessions if session.id == sent.wire_id]
    # The requests carried no tools, so the server had no reason to take the calls out of the text.
    assert [reply_text(t.reply) for t in recorded.turns] == [reply_text(t.reply) for t in original.turns]
    assert [t.prompt[-1]["role"] for t in recorded.turns] == ["user", "tool", "tool"]
    again = play(server, [recorded]).result
    assert (again["sessions_complete"], again["forced_mismatches"]) == (1, 0)


@pytest.mark.skipif("AGENTINFER_TRACES" not in os.environ, reason="AGENTINFER_TRACES names no folder of traces")
@pytest.mark.parametrize(
    ("name", "sessions", "limits"),
    [("airline", 2, Limits(turns=3)), ("swe_dev", 2, Limits(context_tokens=2048, message_tokens=256, turns=3))],
)
def test_recorded_agents_run_through(server: LiveServer, name: str, sessions: int, limits: Limits) -> None:
    trace = read_trace(str(Path(os.environ["AGENTINFER_TRACES"]) / f"{name}.jsonl.xz"))
    result = play(server, trace.sessions[:sessions], limits=limits).result
    assert (result["sessions_complete"], result["errors"], result["forced_mismatches"]) == (sessions, 0, 0)
    assert result["later_turns_hit_rate"] > 0.5
