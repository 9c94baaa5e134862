"""`agentinfer replay` and `agentinfer report` as a user meets them: listing, files, exit status, errors."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agentinfer.replay import cli
from agentinfer.replay.session import Session
from tests.replay_fakes import FakeServer, a_session, with_server


def command(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agentinfer")
    cli.add_commands(parser.add_subparsers())
    return parser.parse_args(words)


def execute(*words: str) -> int:
    args = command(*words)
    status = args.run(args)
    assert isinstance(status, int)
    return status


def against(fake: FakeServer, *words: str) -> int:
    """Run the command while the fake serves; in a thread, since the command starts an event loop of its own."""
    status = with_server(fake, lambda url: asyncio.to_thread(execute, *words, "--url", url))
    assert isinstance(status, int)
    return status


@pytest.fixture
def trace(tmp_path: Path) -> str:
    def line(session: Session) -> dict[str, Any]:
        return {"id": session.id, "messages": list(session.messages)}

    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line(a_session(f"s{i}", i + 1))) + "\n" for i in range(4)))
    return str(path)


def test_list_shows_what_the_trace_holds(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute("replay", "--trace", trace, "--list") == 0
    head, _, _, *rows = capsys.readouterr().out.splitlines()
    assert "openai-messages, 4 sessions, sha256" in head
    assert [row.split()[:2] for row in rows] == [["s0", "1"], ["s1", "2"], ["s2", "3"], ["s3", "4"]]
    assert "bash" in rows[3]


def test_replay_then_report(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, picture = (str(tmp_path / name) for name in ("a.json", "b.json", "c.svg"))
    timeline = tmp_path / "t.json"
    for name, more in ((first, ["--perfetto", str(timeline)]), (second, ["--flush-cache"])):
        words = ("replay", "--trace", trace, "--sessions", "3", "--warmup", "1", "--concurrency", "2", "--forced")
        assert against(FakeServer(), *words, "--quiet", "--json", name, *more) == 0
    printed = capsys.readouterr()
    assert any(line.split()[-3:] == ["3", "/", "3"] for line in printed.out.splitlines())
    assert printed.err == ""
    result = json.loads(Path(first).read_text())
    assert (result["sessions"], result["turns"], result["forced_mismatches"]) == (3, 2 + 3 + 4, 0)
    assert result["provenance"]["trace"]["name"] == trace
    assert len(json.loads(timeline.read_text())["traceEvents"]) > 20
    assert execute("report", first, second, "--svg", picture) == 0
    assert "task completion, mean s" in capsys.readouterr().out
    assert Path(picture).read_text().startswith("<svg")


def test_exit_status_tells_of_failed_turns(trace: str) -> None:
    fake = FakeServer(script=lambda body, number: 503 if number == 2 else None)
    assert against(fake, "replay", "--trace", trace, "--forced", "--quiet") == 1


def test_exit_status_tells_of_replies_that_were_not_forced(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert against(FakeServer(change_text=str.upper), "replay", "--trace", trace, "--forced", "--quiet") == 1
    assert "forced replies that differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--trace", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        (("--url", "http://127.0.0.1:9"), "python -m agentinfer.launch_server"),
        (("--json", "/no/such/folder/x.json"), "its folder does not exist"),
        (("--sessions", "9"), "holds 4 sessions, asked for 9"),
    ],
)
def test_what_cannot_run_says_why(
    trace: str, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute("replay", "--trace", trace, *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--sessions", "0", "a whole number from 1"),
        ("--concurrency", "2.5", "a whole number from 1"),
        ("--gap-scale", "-1", "a number from 0"),
        ("--gap-scale", "nan", "a number from 0"),
        ("--gap-jitter", "1.5", "a number from 0 to 1"),
        ("--timeout", "0", "a number above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    flag: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command("replay", "--trace", "x", flag, value)
    assert f"argument {flag}: expected {expected}, got {value!r}" in capsys.readouterr().err


def test_report_of_a_file_that_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert execute("report", str(tmp_path / "x.json"), str(tmp_path / "x.json")) == 2
    assert "agentinfer replay --json" in capsys.readouterr().err
