"""Our launcher and the installed engine's own options: all of them are shown, and what we add is among them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from agentinfer.config import all_options

pytestmark = pytest.mark.sglang

# Everything is asked in one process, since importing the engine takes seconds and changes the process.
PROBE = """
import argparse, contextlib, io, json
from agentinfer.runtime.arguments import QuietParser, completing_flags, engine_options_given, split_command_line
from agentinfer.runtime.launch import serve
shown = io.StringIO()
with contextlib.redirect_stdout(shown):
    status = serve(["--port", "1", "--help"])
from sglang.srt.server_args import ServerArgs, prepare_server_args
parser = QuietParser()
ServerArgs.add_cli_args(parser)
options = [name for action in parser._actions if action.help != argparse.SUPPRESS
           for name in action.option_strings]
line = split_command_line(["--model", "m", "--disable-cuda-graph"], {})
given = engine_options_given(line, parser)
line = split_command_line([], {})
flags, _ = completing_flags({}, line.resolved.config, lambda path, dtype: "/folder")
args = prepare_server_args(flags)
read = {name: getattr(args, name) for name in
        ("model_path", "served_model_name", "tool_call_parser", "enable_metrics", "enable_cache_report")}
answer = {"status": status, "help": shown.getvalue(), "options": options, "given": given, "read": read}
print("PROBE" + json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer() -> dict[str, object]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTINFER_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment, timeout=180, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("PROBE")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("PROBE"))


def test_help_shows_every_option_of_the_engine_and_then_ours(answer) -> None:
    assert answer["status"] == 0
    text = answer["help"]
    assert len(answer["options"]) > 300
    assert [name for name in answer["options"] if name not in text] == []
    for option in all_options().values():
        assert text.index(option.flag) > text.index("--served-model-name")


def test_engines_own_parser_says_what_was_given(answer) -> None:
    assert answer["given"] == {"model_path": "m", "disable_cuda_graph": True}


def test_flags_that_we_add_mean_to_the_engine_what_they_mean_to_us(answer) -> None:
    assert answer["read"] == {
        "model_path": "/folder",
        "served_model_name": "smollm2-135m",
        "tool_call_parser": "qwen",
        "enable_metrics": True,
        "enable_cache_report": True,
    }
