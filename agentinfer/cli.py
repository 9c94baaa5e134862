"""The `agentinfer` command. Each sub-command is imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from agentinfer import __version__
from agentinfer.config import near
from agentinfer.errors import AgentInferError

# By command: our module whose `add_commands(subparsers)` defines it, and what it is for.
_COMMANDS = {
    "serve": ("", "serve a model: SGLang's flags and ours (same as python -m agentinfer.launch_server)"),
    "models": ("models.cli", "list, prepare, verify or remove the embedded models"),
    "replay": ("replay.cli", "drive a live server with recorded agent sessions and measure it"),
    "report": ("replay.cli", "compare the results of replays, as table and picture"),
    "simulate": ("commands.simulate.cli", "recorded sessions on a simulated engine, under any scheduling policy"),
    "calibrate": ("commands.simulate.cli", "measure what a running server's work takes, for simulate"),
    "compress": ("commands.compress.cli", "what AgentCompress would do to recorded sessions, side by side"),
    "collab": ("commands.collab.cli", "fit when the large model of a pair is called in; show a fitted file"),
    "corpus": ("commands.corpus.cli", "the store of contexts that drafts come from: look, fill, prune, verify"),
    "doctor": ("runtime.doctor", "check versions, device, seams, models and settings; say what to do"),
    "status": ("commands.status", "what a running server says about its agent sessions and their tools"),
    "version": ("cli", "the version of agentinfer"),
}


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
    module = importlib.import_module(f"agentinfer.{_COMMANDS[command][0]}")
    module.add_commands(parser.add_subparsers(dest="command", required=True))
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


def _version(args: argparse.Namespace) -> int:
    print(f"agentinfer {__version__}")
    return 0


def _overview() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in _COMMANDS.items()]
    return "\n".join(["usage: agentinfer COMMAND [...]", "", *lines, "", "agentinfer COMMAND --help says more."])
