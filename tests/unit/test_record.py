"""The session record: what is written is read back whole, and a bad disk or file never surprises."""

from __future__ import annotations

import json
import logging
import resource
import signal

import pytest

from agentinfer.errors import TraceError
from agentinfer.record import FORMAT, RecordWriter, TurnRecord, read_record
from tests.agent_sessions import SYSTEM, assistant, call, generated_sessions, tool, turn_positions, user

TOOLS = [{"type": "function", "function": {"name": "bash"}}]


def turn(session, index, messages, reply, **fields):
    return TurnRecord(session, None, index, "chat", float(index), messages, reply, **fields)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions.jsonl"


@pytest.fixture
def writer(path):
    writer = RecordWriter(path, "a-model", 1000.0)
    yield writer
    writer.close()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_holds_only_what_is_new(path, writer):
    ask, result = assistant("", call("c1")), tool("c1", "out")
    writer.write(turn("a", 0, [SYSTEM, user("go")], ask, tools=TOOLS, sampling={"temperature": 0}, ttft_s=0.5))
    writer.write(turn("a", 1, [SYSTEM, user("go"), ask, result], assistant("Done."), tools=TOOLS, tool="bash"))
    assert lines_of(path) == [
        {"format": FORMAT, "version": 1, "model": "a-model", "started_unix_s": 1000.0},
        {
            "session": "a",
            "parent": None,
            "turn": 0,
            "api": "chat",
            "t_s": 0.0,
            "kept": 0,
            "messages": [SYSTEM, user("go")],
            "reply": ask,
            "tools": TOOLS,
            "sampling": {"temperature": 0},
            "ttft_s": 0.5,
        },
        {
            "session": "a",
            "parent": None,
            "turn": 1,
            "api": "chat",
            "t_s": 1.0,
            "kept": 3,
            "messages": [result],
            "reply": assistant("Done."),
            "tool": "bash",
        },
    ]


def test_sessions_come_back_whole(path, writer):
    sessions = generated_sessions(num_sessions=5, num_turns=6, seed=2)
    expected = {}
    for step in range(7):
        for number, messages in enumerate(sessions):
            position = list(turn_positions(messages))[step]
            record = turn(f"s{number}", step, messages[:position], messages[position], tools=TOOLS, tool_gap_s=1.5)
            assert writer.write(record)
            expected.setdefault(f"s{number}", []).append(record)
    recording = read_record(path)
    assert (recording.model, recording.started_unix_s) == ("a-model", 1000.0)
    assert list(recording.sessions) == list(expected)
    for session, records in expected.items():
        for read, written in zip(recording.sessions[session], records, strict=True):
            assert list(read.messages) == list(written.messages)
            assert (read.reply, list(read.tools)) == (written.reply, TOOLS)
            assert (read.t_s, read.tool_gap_s) == (written.t_s, 1.5)
    # Growth is linear: each session's text stands in the file about once.
    assert path.stat().st_size < 3 * len(json.dumps(sessions))


def test_a_reply_that_comes_back_without_its_nulls_is_kept(path, writer):
    reply = {"role": "assistant", "content": None, "tool_calls": [call("c")], "reasoning_content": None}
    writer.write(turn("a", 0, [user("go")], reply))
    sent_back = {"role": "assistant", "tool_calls": [call("c")]}
    writer.write(turn("a", 1, [user("go"), sent_back, tool("c", "x")], None))
    assert lines_of(path)[2]["kept"] == 2


def test_a_forgotten_session_repeats_its_messages(path):
    writer = RecordWriter(path, None, 0.0, max_sessions=1)
    for session in ("a", "b", "a"):
        writer.write(turn(session, 0, [user("go")], assistant("x")))
    assert [line["kept"] for line in lines_of(path)[1:]] == [0, 0, 0]
    assert [len(turns) for turns in read_record(path).sessions.values()] == [2, 1]


def test_a_restart_continues_file_and_time(path, writer):
    writer.write(turn("a", 0, [user("go")], assistant("x")))
    writer.close()
    path.write_bytes(path.read_bytes() + b'{"session": "a", "par')
    again = RecordWriter(path, "a-model", 1060.0)
    again.write(turn("a", 1, [user("go"), assistant("x"), user("more")], assistant("y")))
    turns = read_record(path).sessions["a"]
    assert [record.t_s for record in turns] == [0.0, 61.0]
    assert len(turns[1].messages) == 3


def test_a_file_that_is_something_else_is_left_alone(path):
    path.write_text("my notes\n")
    with pytest.raises(TraceError, match="choose another file"):
        RecordWriter(path, None, 0.0)
    assert path.read_text() == "my notes\n"


def test_a_full_disk_costs_lines_not_the_server(path, writer, caplog):
    """A limit on file size makes the kernel cut a write short and then refuse it, as a full disk does."""
    writer.write(turn("a", 0, [user("go")], assistant("x")))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with caplog.at_level(logging.INFO, logger="agentinfer.record"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, hard))
            conversation = [user("go"), assistant("x"), user("more")]
            assert not writer.write(turn("a", 1, conversation, assistant("y")))
            assert not writer.write(turn("b", 0, [user("other " * 20)], assistant("y")))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        conversation += [assistant("y"), user("on")]
        assert writer.write(turn("a", 2, conversation, assistant("z")))
    assert writer.num_dropped == 2
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    # The half line is gone, and what follows a dropped line stands by itself.
    assert [list(record.messages) for record in read_record(path).sessions["a"]] == [[user("go")], conversation]


def test_a_closed_or_unwritable_recorder_never_raises(path, writer):
    assert writer.write(turn("a", 0, [{"role": "user", "content": object()}], None))
    writer.close()
    writer.close()
    assert not writer.write(turn("a", 1, [user("x")], None))


def test_a_broken_last_line_is_left_out_with_a_warning(path, writer, caplog):
    writer.write(turn("a", 0, [user("go")], assistant("x")))
    path.write_bytes(path.read_bytes() + b'{"session": "a", "par')
    assert len(read_record(path).sessions["a"]) == 1
    assert "line 3" in caplog.text


GOOD = {"session": "a", "parent": None, "turn": 0, "api": "chat", "t_s": 0, "kept": 0, "messages": [], "reply": None}
HEADER = {"format": FORMAT, "version": 1, "model": None, "started_unix_s": None}
BAD = [
    ("empty", [], "empty"),
    ("not json", [HEADER, "{", GOOD], "line 2: not JSON"),
    ("not an object", [HEADER, "[]", GOOD], "line 2: expected a JSON object, got list"),
    ("no header", [GOOD], "line 1: format: expected"),
    ("version", [{**HEADER, "version": 2}], "line 1: version: this reader knows 1, got 2"),
    ("model", [{**HEADER, "model": 3}], "line 1: model: expected a string"),
    ("missing", [HEADER, {**GOOD, "api": None}], "line 2: api: missing; expected a string"),
    ("type", [HEADER, {**GOOD, "turn": "0"}], "line 2: turn: expected an integer, got str"),
    ("bool", [HEADER, {**GOOD, "turn": True}], "line 2: turn: expected an integer, got bool"),
    ("optional type", [HEADER, {**GOOD, "ttft_s": "x"}], "line 2: ttft_s: expected a number, got str"),
    ("message", [HEADER, {**GOOD, "messages": ["x"]}], r"line 2: messages\[0\]: expected an object, got str"),
    ("kept", [HEADER, {**GOOD, "kept": 2}], "line 2: kept: the session's previous line has 0 messages, got 2"),
    ("negative", [HEADER, {**GOOD, "kept": -1}], "line 2: kept: .* got -1"),
]


@pytest.mark.parametrize(("lines", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_an_error_names_file_line_and_field(path, lines, message):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(TraceError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
