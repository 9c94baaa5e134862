"""Trace readers on small samples made here, and on recorded sessions where AGENTINFER_TRACES names a folder of them."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentinfer.errors import TraceError
from agentinfer.record import RecordWriter, TurnRecord
from agentinfer.replay.traces import bfcl_environments, read_trace

CALL = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "List the files."},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "t": 2.0},
    {"role": "tool", "tool_call_id": "c1", "content": "a b", "t": 2.75},
    {"role": "assistant", "content": "a and b", "t": 4.0},
]
LINE = {"id": "s1", "task": "files", "run": "0", "source": "test", "messages": MESSAGES}


def as_lines(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.mark.parametrize(
    ("name", "pack"),
    [("plain.txt", bytes), ("wrong.gz", lzma.compress), ("x", gzip.compress), ("y.jsonl", bz2.compress)],
    ids=["plain", "xz under a gz name", "gzip without ending", "bzip2"],
)
def test_openai_lines_are_read_whatever_the_packing(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / name).write_bytes(pack(as_lines(LINE, {**LINE, "id": "s2"})))
    trace = read_trace(str(tmp_path / name))
    assert (trace.format, [s.id for s in trace.sessions]) == ("openai-messages", ["s1", "s2"])
    first, second = trace.sessions[0].turns
    assert [m["role"] for m in first.prompt] == ["system", "user"]
    assert (first.tools, first.gap_s) == (("bash",), 0.75)
    assert (second.reply["content"], second.gap_s, len(second.prompt)) == ("a and b", None, 4)
    assert "t" not in first.reply


def test_gap_waits_for_the_slower_of_two_tools(tmp_path: Path) -> None:
    two = [*MESSAGES[:3], {**MESSAGES[3], "t": 9.0}, {**MESSAGES[3], "t": 5.0}, MESSAGES[4]]
    (tmp_path / "t").write_bytes(as_lines({**LINE, "messages": two}))
    assert read_trace(str(tmp_path / "t")).sessions[0].turns[0].gap_s == 7.0


def test_consecutive_replies_are_turns_of_their_own(tmp_path: Path) -> None:
    twice = [*MESSAGES[:2], {"role": "assistant", "content": "one"}, {"role": "assistant", "content": "two"}]
    (tmp_path / "t").write_bytes(as_lines({**LINE, "messages": twice}))
    assert [len(t.prompt) for t in read_trace(str(tmp_path / "t")).sessions[0].turns] == [2, 3]


@pytest.mark.parametrize("arguments", ['{"command": "ls', "[1]", "ls"])
def test_arguments_that_are_no_json_object_are_kept_as_a_field(tmp_path: Path, arguments: str) -> None:
    broken = {"id": "c1", "function": {"name": "bash", "arguments": arguments}}
    (tmp_path / "t").write_bytes(
        as_lines({**LINE, "messages": [*MESSAGES[:2], {**MESSAGES[2], "tool_calls": [broken]}]})
    )
    call = read_trace(str(tmp_path / "t")).sessions[0].turns[0].reply["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"unparsed": arguments}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not json", ":1: not JSON"),
        (b"[1]\n", ":1: expected a JSON object, got list"),
        (b'{"a": 1}\n', "not a trace we know"),
        (as_lines(LINE) + b"{oops\n", ":2: not JSON"),
        (as_lines({"id": "s", "requests": [{"in": 3}]}), "no text to replay"),
        (as_lines({**LINE, "messages": "hi"}), ":1: messages: expected a list"),
        (as_lines({**LINE, "messages": [{"role": "robot"}]}), "messages[0].role: expected one of"),
        (as_lines({**LINE, "messages": [{"role": "user", "content": 3}]}), "messages[0].content"),
        (
            as_lines({**LINE, "messages": [*MESSAGES[:2], {**MESSAGES[2], "t": "now"}]}),
            "messages[2].t: expected seconds",
        ),
        (
            as_lines({**LINE, "messages": [{**MESSAGES[2], "tool_calls": [{"function": {"arguments": "{}"}}]}]}),
            "messages[0].tool_calls[0].function.name",
        ),
        (as_lines(LINE, LINE), "'s1' comes twice"),
        (as_lines({**LINE, "messages": MESSAGES[:2]}), "nothing to replay"),
        (lzma.compress(as_lines(LINE))[:-20], "damaged"),
        (b"\x28\xb5\x2f\xfd rest", "zstd"),
    ],
)
def test_bad_traces_say_file_line_and_field(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(TraceError) as error:
        read_trace(str(path))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_missing_file_is_a_trace_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read_trace(str(tmp_path / "none"))


def recorded(turn: int, said: list[dict[str, Any]], reply: dict[str, Any] | None, t_s: float) -> TurnRecord:
    tools = [{"type": "function"}]
    return TurnRecord(
        session="s", parent=None, turn=turn, api="chat", t_s=t_s, messages=said, reply=reply, tools=tools, latency_s=1.0
    )


def test_our_own_record_is_put_together_again(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    writer = RecordWriter(path, model="m", started_unix_s=0.0)
    said = [{k: v for k, v in m.items() if k != "t"} for m in MESSAGES]
    writer.write(recorded(0, said[:2], said[2], t_s=10.0))
    writer.write(recorded(1, said[:4], None, t_s=11.5))  # the client went away, and asked again
    writer.write(recorded(2, said[:4], said[4], t_s=13.25))
    writer.close()
    path.write_bytes(lzma.compress(path.read_bytes()))
    trace = read_trace(str(path))
    (session,) = trace.sessions
    assert trace.format == "agentinfer-record"
    assert [m["content"] for m in session.messages] == [m["content"] for m in said]
    assert [t.gap_s for t in session.turns] == [2.25, None]
    assert session.turns[1].prompt[2] is session.turns[0].reply
    assert session.tool_schemas == ({"type": "function"},)


def test_broken_record_names_the_file_as_given(tmp_path: Path) -> None:
    path = tmp_path / "record.gz"
    path.write_bytes(gzip.compress(as_lines({"format": "agentinfer.sessions", "version": 9})))
    with pytest.raises(TraceError, match=r"record\.gz.*version"):
        read_trace(str(path))


def test_mini_swe_agent_trajectory(tmp_path: Path) -> None:
    messages = [
        *MESSAGES[:2],
        {**MESSAGES[2], "extra": {"timestamp": 100.0, "response": {}}},
        {**MESSAGES[3], "extra": {"timestamp": 100.5, "raw_output": "a b"}},
        {"role": "assistant", "content": "bye", "extra": {"timestamp": 103.0}},
        {"role": "exit", "content": "", "extra": {"exit_status": "Submitted"}},
    ]
    document = {
        "info": {"mini_version": "2.2.7"},
        "messages": messages,
        "trajectory_format": "mini-swe-agent-1.1",
        "instance_id": "repo-1",
    }
    path = tmp_path / "repo-1.traj.json"
    path.write_text(json.dumps(document, indent=2))
    trace = read_trace(str(path))
    (session,) = trace.sessions
    assert (trace.format, session.task, session.source) == ("mini-swe-agent", "repo-1", "mini-swe-agent 2.2.7")
    assert [t.gap_s for t in session.turns] == [0.5, None]
    assert "extra" not in session.messages[2]


def test_mini_swe_agent_responses_api_items_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.traj.json"
    path.write_text(json.dumps({"info": {}, "messages": [{"type": "function_call_output", "output": "x"}]}))
    with pytest.raises(TraceError, match=r"messages\[0\].*Responses API"):
        read_trace(str(path))


def swe_agent_document() -> dict[str, Any]:
    def entry(role: str, content: str, **more: Any) -> dict[str, Any]:
        return {"role": role, "content": content, "agent": "main", "message_type": "x", **more}

    history = [
        entry("system", "Be brief."),
        entry("user", "A demonstration", is_demo=True),
        entry("user", [{"type": "text", "text": "Fix it"}]),  # type: ignore[arg-type]
        entry("assistant", "look", tool_calls=[CALL], action="ls", thought="look"),
        entry("tool", "a b", tool_call_ids=["c1"]),
        entry("assistant", "elsewhere", agent="reviewer"),
        entry("assistant", "done", tool_calls=[CALL], action="submit"),
    ]
    steps = [{"action": "ls", "execution_time": 0.25, "observation": "a b"}, {"action": "submit", "execution_time": 1}]
    return {"environment": "main", "trajectory": steps, "history": history, "info": {"exit_status": "submitted"}}


def test_swe_agent_trajectory(tmp_path: Path) -> None:
    folder = tmp_path / "run7"
    folder.mkdir()
    (folder / "repo-1.traj").write_text(json.dumps(swe_agent_document(), indent=2))
    trace = read_trace(str(tmp_path))
    (session,) = trace.sessions
    assert (trace.format, session.id, session.run) == ("swe-agent", "repo-1", "run7")
    assert [len(t.prompt) for t in session.turns] == [3, 5]
    assert [t.gap_s for t in session.turns] == [0.25, None]
    assert session.messages[4]["tool_call_id"] == "c1"
    assert "thought" not in session.messages[3]


def test_swe_agent_without_execution_times_has_no_gaps(tmp_path: Path) -> None:
    document = swe_agent_document()
    del document["trajectory"][0]["execution_time"]
    (tmp_path / "a.traj").write_text(json.dumps(document))
    assert read_trace(str(tmp_path / "a.traj")).sessions[0].turns[0].gap_s is None


def test_empty_folder_says_which_endings_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"\.traj\.json"):
        read_trace(str(tmp_path))


needs_bfcl = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")


@needs_bfcl
@pytest.mark.parametrize("category", ["multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param"])
def test_bfcl_tasks_become_sessions_of_calls_with_results(category: str) -> None:
    trace = read_trace(f"bfcl:{category}")
    assert len(trace.sessions) == 200
    for session in trace.sessions:
        offered = {schema["function"]["name"] for schema in session.tool_schemas}
        assert {name for turn in session.turns for name in turn.tools} <= offered
        for before, after in zip(session.messages, session.messages[1:], strict=False):
            assert ("tool_calls" in before) == (after["role"] == "tool")
    results = [m["content"] for s in trace.sessions for m in s.messages if m["role"] == "tool"]
    # The environments must really have run: their errors and our stand-in sentences are the exception.
    assert sum(r.startswith("Error during execution") or r.endswith(") done.") for r in results) < 0.01 * len(results)


@needs_bfcl
def test_bfcl_session_depends_on_the_calls_before_and_not_on_chance() -> None:
    first, again = (read_trace("bfcl:multi_turn_base") for _ in range(2))
    assert [s.messages for s in first.sessions] == [s.messages for s in again.sessions]
    task = first.sessions[0]
    assert json.loads(task.messages[3]["content"]) == {"current_working_directory": "document"}


@needs_bfcl
def test_unknown_bfcl_category_lists_the_known() -> None:
    with pytest.raises(TraceError, match="multi_turn_base, multi_turn_long_context"):
        read_trace("bfcl:simple")


def test_bfcl_result_is_built_from_the_call_where_no_environment_loads() -> None:
    environments = bfcl_environments.Environments(["NoSuchAPI"], {}, long_context=False)
    assert environments.call("fly", {"to": "Oslo", "seats": 2}) == "fly(to='Oslo', seats=2) done."


@pytest.mark.skipif("AGENTINFER_TRACES" not in os.environ, reason="AGENTINFER_TRACES names no folder of traces")
@pytest.mark.parametrize(
    ("name", "num_sessions", "num_turns", "num_gaps"),
    [("swe_dev", 66, 5441, 5375), ("swe_glm45", 24, 698, 0), ("airline", 100, 1229, 0)],
)
def test_recorded_sessions(name: str, num_sessions: int, num_turns: int, num_gaps: int) -> None:
    trace = read_trace(str(Path(os.environ["AGENTINFER_TRACES"]) / f"{name}.jsonl.xz"))
    turns = [turn for session in trace.sessions for turn in session.turns]
    assert (len(trace.sessions), len(turns)) == (num_sessions, num_turns)
    assert sum(turn.gap_s is not None for turn in turns) == num_gaps
    assert all(turn.prompt[-1]["role"] in ("user", "tool") for turn in turns)
