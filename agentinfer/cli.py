"""The `agentinfer` command. Each sub-command is imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from agentinfer import __version__
from agentinfer.config import near
from agentinfer.errors import AgentInferError

# By command: the module whose `add_commands(subparsers)` defines it, and what it is for.
_COMMANDS = {
    "serve": ("", "serve a model: SGLang's flags and ours (same as python -m agentinfer.launch_server)"),
    "models": ("agentinfer.models.cli", "list, prepare, verify or remove the embedded models"),
    "replay": ("agentinfer.replay.cli", "drive a live server with recorded agent sessions and measure it"),
    "report": ("agentinfer.replay.cli", "compare the results of replays, as table and picture"),
    "corpus": ("agentinfer.corpus.cli", "the store of contexts that drafts come from: look, fill, prune, verify"),
    "doctor": ("agentinfer.runtime.doctor", "check versions, device, seams, models and settings; say what to do"),
    "status": ("agentinfer.cli", "what a running server says about its agent sessions"),
    "version": ("agentinfer.cli", "the version of agentinfer"),
}

_STATUS_TIMEOUT_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status, 2 for a command line that cannot be understood."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        argv[0] = "version"
    command = argv[0]
    if command not in _COMMANDS:
        print(f"agentinfer: unknown command {command!r}.{near(command, _COMMANDS)}\n\n{_overview()}", file=sys.stderr)
        return 2
    if command == "serve":
        from agentinfer.launch_server import main as serve

        return serve(argv[1:])
    parser = argparse.ArgumentParser(prog="agentinfer")
    importlib.import_module(_COMMANDS[command][0]).add_commands(parser.add_subparsers(dest="command", required=True))
    args = parser.parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except AgentInferError as error:
        print(f"agentinfer {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands that need no package of their own."""
    version = subparsers.add_parser("version", help=_COMMANDS["version"][1])
    version.set_defaults(run=_version)
    status = subparsers.add_parser("status", help=_COMMANDS["status"][1])
    status.add_argument("--url", default="http://127.0.0.1:30000", help="the server's address (default: %(default)s)")
    status.add_argument("--json", action="store_true", help="print the answer as it came")
    status.set_defaults(run=_status)


def _version(args: argparse.Namespace) -> int:
    print(f"agentinfer {__version__}")
    return 0


def _status(args: argparse.Namespace) -> int:
    address = args.url.rstrip("/") + "/agentinfer/status"
    try:
        request = urllib.request.Request(address, headers={"accept": "application/json"})
        with urllib.request.urlopen(request, timeout=_STATUS_TIMEOUT_S) as answer:
            body = answer.read().decode()
        seen = json.loads(body)
    except urllib.error.HTTPError as error:
        advice = "was the server started by agentinfer, with sessions on?" if error.code == 404 else error.reason
        raise AgentInferError(f"{address} answered HTTP {error.code}: {advice}") from None
    except (OSError, ValueError) as error:
        raise AgentInferError(f"{address} gave no status: {error}. Is a server there? Try --url") from None
    print(body if args.json else "\n".join(_indented(seen)))
    return 0


def _indented(value: Any, depth: int = 0) -> list[str]:
    """A JSON value as `name: value` lines, nested ones indented."""
    pad = "  " * depth
    if isinstance(value, dict):
        lines = []
        for name, inner in value.items():
            if isinstance(inner, dict | list) and inner:
                lines += [f"{pad}{name}:", *_indented(inner, depth + 1)]
            else:
                lines.append(f"{pad}{name}: {_scalar(inner)}")
        return lines
    if isinstance(value, list):
        return [
            line
            for item in value
            for line in (_indented(item, depth) if isinstance(item, dict | list) else [f"{pad}{_scalar(item)}"])
        ]
    return [f"{pad}{_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _overview() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in _COMMANDS.items()]
    return "\n".join(["usage: agentinfer COMMAND [...]", "", *lines, "", "agentinfer COMMAND --help says more."])
