"""The `agentinfer` command: finds its sub-commands, imports only the one called, and fails in words."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from agentinfer import __version__, cli, launch_server
from agentinfer.commands import status

TOOLS = {
    "bash": {"count": 1204, "p50_s": 0.26, "p90_s": 5.0, "p99_s": 64.5, "latest_s": 0.031, "latest_age_s": 7200.0},
    "a\tb": {"count": 3, "p50_s": 80.0, "p90_s": 90.0, "p99_s": 95.0, "never_share": 0.25, "latest_age_s": None},
}
STATUS = {
    "version": "1",
    "sessions": {"running": 2},
    "ratio": 0.25,
    "recent": [{"id": "a"}, "b"],
    "none": [],
    "tools": TOOLS,
}
TABLE = [
    "tools:",
    "  tool    gaps       p50      p90       p99  never  latest     seen",
    "  bash    1204    260 ms      5 s  1.07 min      –   31 ms  2 h ago",
    "  'a\\tb'     3  1.33 min  1.5 min  1.58 min  25.0%       –        –",
]


@pytest.fixture
def url():
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/agentinfer/status"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(STATUS).encode() if known else b"{}")

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_overview_lists_every_command(capsys) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("serve", "models", "replay", "report", "doctor", "status", "version"):
        assert f"\n  {command} " in text


def test_no_command_is_a_mistake(capsys) -> None:
    assert cli.main([]) == 2


def test_unknown_command_is_answered_with_a_near_one(capsys) -> None:
    assert cli.main(["doktor"]) == 2
    assert "unknown command 'doktor'. Did you mean doctor?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["models", "replay", "report", "doctor", "status", "version"])
def test_every_command_is_provided_by_its_module(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: agentinfer {command}" in capsys.readouterr().out


def test_serve_hands_on_its_arguments_unparsed(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(launch_server, "main", lambda argv: seen.append(argv) or 7)
    assert cli.main(["serve", "--help", "--model-path", "m"]) == 7
    assert seen == [["--help", "--model-path", "m"]]


@pytest.mark.parametrize("argv", [["version"], ["--version"]])
def test_version(argv: list[str], capsys) -> None:
    assert cli.main(argv) == 0
    assert capsys.readouterr().out == f"agentinfer {__version__}\n"


def test_command_imports_no_engine() -> None:
    code = (
        "import sys, agentinfer.cli as c; c.main(['version']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'sglang', 'aiohttp')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_status_is_printed_as_indented_lines(url: str, capsys) -> None:
    assert cli.main(["status", "--url", url + "/"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:8] == [
        "version: 1",
        "sessions:",
        "  running: 2",
        "ratio: 0.25",
        "recent:",
        "  id: a",
        "  b",
        "none: []",
    ]
    assert lines[8:] == TABLE


def test_tools_of_a_fresh_server() -> None:
    assert status.tool_table({}) == ["tool  gaps  p50  p90  p99  never  latest  seen"]


def test_status_as_json_is_the_answer_itself(url: str, capsys) -> None:
    assert cli.main(["status", "--json", "--url", url]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_status_of_a_stock_server_says_what_is_missing(url: str, capsys) -> None:
    assert cli.main(["status", "--url", url + "/prefix"]) == 1
    assert "HTTP 404: was the server started by agentinfer, with sessions on?" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "nonsense"])
def test_status_without_a_server_says_so(address: str, capsys) -> None:
    assert cli.main(["status", "--url", address]) == 1
    assert "gave no status" in capsys.readouterr().err


def test_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "agentinfer", "version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"agentinfer {__version__}\n"
