"""The closed loop against a server in this process: order, concurrency, gaps, errors, what is sent and what is read."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from agentinfer.clock import ManualClock
from agentinfer.errors import AgentInferError, TraceError
from agentinfer.replay import ReplayRun, RunOptions, Session, Trace, replay, table
from agentinfer.replay.client import Exchange
from agentinfer.replay.driver import LoopOptions, Replay, SessionResult, is_as_recorded
from agentinfer.replay.render import RequestOptions
from agentinfer.replay.truncate import Limits
from tests.replay_fakes import FakeServer, a_session, with_server, words

REQUEST = RequestOptions(model="m", forced=True, send_hints=True, max_tokens=5, temperature=0.0)


def run(fake: FakeServer, recorded: list[Session], **options: Any) -> ReplayRun:
    trace = Trace("trace", "test", "0" * 64, recorded)
    made = RunOptions(url="", **{"forced": True, "timeout_s": 5.0, **options})
    done = with_server(fake, lambda url: replay(trace, replace(made, url=url)))
    assert isinstance(done, ReplayRun)
    return done


class Simulated:
    """A sender on a manual clock: each reply takes `seconds`; nothing real passes."""

    def __init__(self, clock: ManualClock, seconds: float = 1.0) -> None:
        self.clock = clock
        self.seconds = seconds
        self.sent: list[tuple[str, int]] = []
        self.live = 0
        self.most_live = 0
        self.slept: list[float] = []

    async def send(self, body: dict[str, Any]) -> Exchange:
        self.sent.append((body["agentinfer"]["session"].split(".")[0], body["agentinfer"]["turn"]))
        self.live += 1
        self.most_live = max(self.most_live, self.live)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.live -= 1
        self.clock.advance(self.seconds)
        return Exchange(latency_s=self.seconds, text=body["agentinfer"]["forced"]["text"])

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds)


def simulate(sessions: list[Session], loop: LoopOptions) -> tuple[Simulated, list[SessionResult]]:
    clock = ManualClock()
    sender = Simulated(clock)
    driver = Replay(sender, REQUEST, loop, clock, "run", sleep=sender.sleep)
    return sender, asyncio.run(driver.run(sessions))


@pytest.mark.parametrize("concurrency", [1, 3, 10])
def test_as_many_sessions_live_as_asked_and_turns_in_order(concurrency: int) -> None:
    sessions = [a_session(f"s{i}", num_turns=i % 3 + 1) for i in range(7)]
    sender, results = simulate(sessions, LoopOptions(concurrency=concurrency))
    assert sender.most_live == min(concurrency, 7)
    assert [r.session.id for r in results] == [s.id for s in sessions]
    firsts = [name for name, turn in sender.sent if turn == 0]
    assert firsts == [s.id for s in sessions]
    for session in sessions:
        assert [t for name, t in sender.sent if name == session.id] == list(range(len(session.turns)))


def test_a_new_session_starts_when_one_ends() -> None:
    sender, _ = simulate(
        [a_session("long", 4), a_session("short", 1), a_session("next", 1)], LoopOptions(concurrency=2)
    )
    assert sender.sent.index(("next", 0)) < sender.sent.index(("long", 3))


@pytest.mark.parametrize(
    ("gap_s", "loop", "expected"),
    [
        (2.0, LoopOptions(), [2.0, 2.0]),
        (2.0, LoopOptions(gap_scale=0.25), [0.5, 0.5]),
        (2.0, LoopOptions(gap_scale=0.0), []),
        (None, LoopOptions(default_gap_s=3.0, gap_scale=2.0), [6.0, 6.0]),
        (None, LoopOptions(), []),
    ],
    ids=["recorded", "scaled", "none", "default", "no times"],
)
def test_gaps_between_turns(gap_s: float | None, loop: LoopOptions, expected: list[float]) -> None:
    sender, (result,) = simulate([a_session("s", 3, gap_s=gap_s)], loop)
    assert sender.slept == expected
    assert result.ended_s - result.started_s == pytest.approx(3.0 + sum(expected))


def test_jitter_depends_on_seed_session_and_turn_alone() -> None:
    def waits(seed: int, sessions: list[Session]) -> dict[tuple[str, int], float]:
        _, results = simulate(sessions, LoopOptions(concurrency=2, gap_jitter=0.5, seed=seed))
        return {(r.session.id, t.index): t.gap_s for r in results for t in r.turns}

    sessions = [a_session("a", 3, gap_s=4.0), a_session("b", 3, gap_s=4.0)]
    assert waits(1, sessions) == waits(1, sessions[::-1])
    assert waits(1, sessions) != waits(2, sessions)
    assert all(2.0 <= wait <= 6.0 for wait in waits(1, sessions).values() if wait)


def test_forced_replay_over_http_extends_every_prompt() -> None:
    fake = FakeServer()
    done = run(fake, [a_session("s", 3)], limits=Limits())
    assert [body["agentinfer"]["turn"] for body in fake.bodies] == [0, 1, 2]
    assert [body["agentinfer"]["last"] for body in fake.bodies] == [False, False, True]
    assert [body["agentinfer"].get("tool") for body in fake.bodies] == ["bash", "bash", None]
    assert len({body["agentinfer"]["session"] for body in fake.bodies}) == 1
    text = 'Step 0\n<tool_call>\n{"name": "bash", "arguments": {"command": "ls é0"}}\n</tool_call>'
    assert fake.bodies[0]["agentinfer"]["forced"] == {"text": text}
    assert "max_tokens" not in fake.bodies[0]
    for before, after in zip(fake.bodies, fake.bodies[1:], strict=False):
        assert after["messages"][: len(before["messages"])] == before["messages"]
    assert (done.result["forced_checked"], done.result["forced_mismatches"], done.result["errors"]) == (3, 0, 0)
    assert done.result["later_turns_hit_rate"] == pytest.approx(0.5, abs=0.02)


def test_wire_ids_differ_between_runs_and_are_safe_in_a_path() -> None:
    fake = FakeServer()
    for _ in range(2):
        run(fake, [a_session("a/b ä", 1), a_session("a?b ä", 1)])
    ids = [body["agentinfer"]["session"] for body in fake.bodies]
    assert len(set(ids)) == 4
    assert all(set("/?% ä").isdisjoint(name) for name in ids)


@pytest.mark.parametrize(("forced", "keys"), [(True, {"forced"}), (False, None)], ids=["forced", "free"])
def test_no_hints_sends_no_object_but_the_forced_text(forced: bool, keys: set[str] | None) -> None:
    fake = FakeServer()
    run(fake, [a_session("s", 1)], forced=forced, send_hints=False)
    (body,) = fake.bodies
    assert (set(body["agentinfer"]) if "agentinfer" in body else None) == keys


def test_free_replies_are_thrown_away_and_the_recorded_go_on() -> None:
    fake = FakeServer()
    done = run(fake, [a_session("s", 2)], forced=False, max_tokens=7)
    assert fake.bodies[1]["messages"][2]["content"] == "Step 0"
    assert fake.bodies[0]["max_tokens"] == 7
    assert done.result["forced_mismatches"] is None


def test_altered_forced_replies_are_counted() -> None:
    done = run(FakeServer(change_text=lambda text: text.replace("Step 1", "Step 9")), [a_session("s", 3)])
    assert (done.result["forced_checked"], done.result["forced_mismatches"]) == (3, 1)


def test_calls_taken_out_of_the_text_by_a_parser_are_as_recorded() -> None:
    fake = FakeServer(calls_apart=True)
    # Two halves would cut the call: a long content keeps it whole in the second one.
    session = a_session("s", 2)
    long = {**session.turns[0].reply, "content": "word " * 40}
    turn = replace(session.turns[0], reply=long)
    done = run(fake, [replace(session, turns=(turn,))])
    assert done.sessions[0].turns[0].exchange.tool_calls == [{"name": "bash", "arguments": '{"command":"ls \\u00e90"}'}]
    assert done.result["forced_mismatches"] == 0


def test_a_call_with_another_argument_is_not_as_recorded() -> None:
    turn = a_session("s", 2).turns[0]
    other = Exchange(text="Step 0", tool_calls=[{"name": "bash", "arguments": '{"command": "rm"}'}])
    same = Exchange(text="Step 0\n", tool_calls=[{"name": "bash", "arguments": '{"command":"ls é0"}'}])
    assert (is_as_recorded(turn, other), is_as_recorded(turn, same)) == (False, True)


@pytest.mark.parametrize(
    ("order", "kind"), [(500, "http_500"), ("cut", "connection"), ("hang", "timeout")], ids=["status", "cut", "hang"]
)
def test_a_failed_turn_ends_its_session_and_is_counted(order: int | str, kind: str) -> None:
    fake = FakeServer(script=lambda body, number: order if number == 1 else None)
    done = run(fake, [a_session("bad", 3), a_session("good", 3)], timeout_s=0.5)
    result = done.result
    assert (result["sessions"], result["sessions_complete"], result["errors"]) == (2, 1, 1)
    assert result["errors_by_kind"] == {kind: 1}
    assert [s["is_complete"] for s in result["samples"]["sessions"]] == [False, True]
    assert len(fake.bodies) == 2 + 3
    assert result["samples"]["turns"][1]["error"]


def test_server_that_vanishes_mid_replay_is_counted_not_raised() -> None:
    class Vanishing(FakeServer):
        async def _chat(self, request: Any) -> Any:
            if len(self.bodies) >= 2:
                request.transport.abort()
            return await super()._chat(request)

    done = run(Vanishing(), [a_session(f"s{i}", 3) for i in range(3)])
    assert done.result["sessions_complete"] == 0
    assert done.result["errors_by_kind"] == {"connection": 3}
    assert done.result["completion_mean_s"] is None


def test_nothing_at_the_url_says_how_to_start_a_server() -> None:
    options = RunOptions(url="http://127.0.0.1:9")
    with pytest.raises(AgentInferError, match=r"launch_server.*--url"):
        asyncio.run(replay(Trace("t", "test", "", [a_session("s")]), options))


def test_unknown_model_names_those_served() -> None:
    with pytest.raises(AgentInferError, match=r"serves fake; asked for other"):
        run(FakeServer(), [a_session("s")], model="other")


def test_slow_stream_times_are_taken_at_the_content() -> None:
    done = run(FakeServer(pause_s=0.15), [a_session("s", 1)])
    exchange = done.sessions[0].turns[0].exchange
    assert exchange.ttft_s is not None
    assert 0.15 <= exchange.ttft_s <= exchange.latency_s < 2.0
    assert done.result["ttft_p50_s"] == exchange.ttft_s


def test_concurrency_over_http() -> None:
    fake = FakeServer(pause_s=0.05)
    run(fake, [a_session(f"s{i}", 2) for i in range(6)], loop=LoopOptions(concurrency=3))
    assert fake.most_live == 3


def test_warm_up_runs_first_and_is_not_counted() -> None:
    fake = FakeServer()
    done = run(fake, [a_session(f"s{i}", 2) for i in range(4)], warmup=1, sessions=2, flush_cache=True)
    assert (done.result["sessions"], done.result["sessions_warmup"], done.result["turns"]) == (2, 1, 4)
    assert [s["session"] for s in done.result["samples"]["sessions"]] == ["s1", "s2"]
    assert [r.is_warmup for r in done.sessions] == [True, False, False]
    assert fake.flushed == 1


def test_more_sessions_than_the_trace_holds_is_an_error() -> None:
    with pytest.raises(TraceError, match="holds 2 sessions, asked for 3 after 0"):
        run(FakeServer(), [a_session("a"), a_session("b")], sessions=3)


def test_shuffled_order_is_the_seeds() -> None:
    sessions = [a_session(f"s{i}", 1) for i in range(6)]

    def order(seed: int) -> list[str]:
        done = run(FakeServer(), sessions, shuffle=True, loop=LoopOptions(seed=seed))
        return [r.session.id for r in done.sessions]

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize(
    ("reports", "cached", "source"),
    [(True, True, "usage.prompt_tokens_details"), (None, None, "not reported"), (False, None, "not reported")],
    ids=["reported", "unknown", "off"],
)
def test_cached_tokens_are_never_zero_for_want_of_a_report(
    reports: bool | None, cached: bool | None, source: str
) -> None:
    result = run(FakeServer(reports_cache=reports), [a_session("s", 3)]).result
    assert (result["prompt_tokens_cached"] is not None) is bool(cached)
    assert (result["prompt_tokens_computed"] is not None) is bool(cached)
    assert result["cached_tokens_source"].startswith(source)


def test_a_report_that_is_on_and_silent_means_zero() -> None:
    # SGLang leaves the field out when nothing was cached: the server's setting tells that apart from no report.
    result = run(FakeServer(reports_cache=True), [a_session("s", 1)]).result
    assert result["prompt_tokens_cached"] == 0
    assert result["prompt_tokens_computed"] == result["prompt_tokens"] > 0


def test_cached_tokens_and_queue_times_come_from_the_session_route_too() -> None:
    turns = [{"turn": i, "cached_tokens": 5 * i, "queue_s": 0.25, "note": "x"} for i in range(3)]
    done = run(FakeServer(reports_cache=False, server_turns={"s": turns}), [a_session("s", 3)])
    assert (done.result["prompt_tokens_cached"], done.result["cached_tokens_source"]) == (15, "/agentinfer/sessions")
    assert done.sessions[0].turns[2].server == {"cached_tokens": 10, "queue_s": 0.25}


def test_turns_that_the_server_writes_down_late_are_asked_for_again() -> None:
    fake = FakeServer(reports_cache=False, server_turns={"s": [{"turn": 0, "cached_tokens": 3}]}, written_after=2)
    assert run(fake, [a_session("s", 1)]).result["prompt_tokens_cached"] == 3
    assert fake.asked == 3


def test_a_session_keeps_its_connection_to_the_end_of_each_reply() -> None:
    fake = FakeServer(end_pause_s=0.02)
    run(fake, [a_session("s", 5)])
    assert len(fake.connections) == 1


def test_cached_tokens_of_a_part_of_the_turns_say_so() -> None:
    told = {"s": [{"turn": 2, "cached_tokens": 7}]}
    result = run(FakeServer(reports_cache=False, server_turns=told), [a_session("s", 3)]).result
    assert (result["prompt_tokens_cached"], result["cached_tokens_turns"], result["turns"]) == (7, 1, 3)
    assert "cached tokens: known of 1 of 3 turns" in table.result_table(result)


@pytest.mark.parametrize("tokenizes", [True, False], ids=["tokenize route", "estimate"])
def test_sessions_are_cut_at_the_tail_to_fit_the_context(tokenizes: bool) -> None:
    fake = FakeServer(tokenizes=tokenizes)
    done = run(fake, [a_session("s", 12, words_each=60)], limits=Limits(context_tokens=500))
    replayed = done.sessions[0].session.turns
    assert 2 <= len(replayed) < 12
    assert replayed == a_session("s", 12, words_each=60).turns[: len(replayed)]
    assert max(sum(words(json.dumps(m)) for m in body["messages"]) for body in fake.bodies) <= 500
    assert done.result["fitting"]["turns_dropped"] == 12 - len(replayed)
    assert ("estimated" in done.result["fitting"]["token_counts"]) is not tokenizes


def test_the_servers_own_window_is_the_default_limit() -> None:
    done = run(FakeServer(context_tokens=300), [a_session("s", 12, words_each=60)])
    assert done.result["fitting"]["context_tokens"] == 300
    assert done.result["fitting"]["sessions_cut"] == 1


def test_room_is_kept_for_a_free_reply() -> None:
    def turns(**options: Any) -> int:
        done = run(FakeServer(), [a_session("s", 12, words_each=60)], limits=Limits(context_tokens=700), **options)
        turns = done.result["turns"]
        assert isinstance(turns, int)
        return turns

    assert turns(forced=False, max_tokens=400) < turns(forced=True)
    assert turns(forced=False, max_tokens=1) >= turns(forced=True)


def test_a_sub_agents_requests_name_the_parent_by_its_id_on_the_wire() -> None:
    fake = FakeServer()
    run(
        fake,
        [a_session("top", 1), replace(a_session("sub", 2), parent="top"), replace(a_session("orphan", 1), parent="x")],
    )
    top, *subs, orphan = (body["agentinfer"] for body in fake.bodies)
    assert [sub["parent"] for sub in subs] == [top["session"]] * 2
    assert "parent" not in top
    assert "parent" not in orphan


def test_a_first_turn_that_cannot_fit_names_the_limits() -> None:
    with pytest.raises(TraceError, match=r"--max-context.*--max-message-tokens"):
        run(FakeServer(), [a_session("s", 2)], limits=Limits(context_tokens=5))


def test_long_tool_outputs_lose_their_middle_and_replies_stay_whole() -> None:
    fake = FakeServer()
    done = run(fake, [a_session("s", 4, words_each=400)], limits=Limits(message_tokens=50, turns=3))
    assert done.result["fitting"]["messages_clipped"] == 2
    tool = fake.bodies[2]["messages"][3]["content"]
    assert tool.startswith("w0 w0")
    assert tool.endswith("w0 w0")
    assert "characters left out" in tool
    assert words(tool) < 60
    assert fake.bodies[2]["messages"][3] == fake.bodies[1]["messages"][3]
    assert done.result["turns"] == 3


def test_reasoning_can_be_emitted_as_text() -> None:
    session = a_session("s", 2)
    thinking = {**session.turns[0].reply, "reasoning_content": "hm"}
    first, second = session.turns
    prompt = (*second.prompt[:2], thinking, *second.prompt[3:])
    made = replace(session, turns=(replace(first, reply=thinking), replace(second, prompt=prompt)))
    fake = FakeServer()
    run(fake, [made], inline_reasoning=True)
    assert fake.bodies[0]["agentinfer"]["forced"]["text"].startswith("<think>\nhm\n</think>\n\nStep 0\n<tool_call>")
    assert fake.bodies[1]["messages"][2]["content"] == "<think>\nhm\n</think>\n\nStep 0"
    assert "reasoning_content" not in fake.bodies[1]["messages"][2]


def test_progress_in_a_log_is_lines_and_ends_with_the_count() -> None:
    stream = io.StringIO()
    trace = Trace("t", "test", "", [a_session("a", 2), a_session("b", 1)])

    async def use(url: str) -> ReplayRun:
        return await replay(trace, RunOptions(url=url, forced=True), progress_to=stream)

    with_server(FakeServer(), use)
    assert stream.getvalue() == "replay: 2/2 sessions  3/3 turns  0 s\n"


def test_provenance_says_what_was_run_and_keeps_no_key() -> None:
    done = run(FakeServer(), [a_session("s", 1)])
    source = done.result["provenance"]
    assert source["trace"] == {"name": "trace", "format": "test", "sha256": "0" * 64}
    assert source["server"]["version"] == "0.0"
    assert "secret" not in json.dumps(done.result)
    assert source["client"]["cpu_count"] >= 1
