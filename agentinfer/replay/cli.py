"""`agentinfer replay` and `agentinfer report`: flags, files and exit status."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentinfer.errors import AgentInferError
from agentinfer.replay import perfetto, picture, report, table
from agentinfer.replay.driver import LoopOptions
from agentinfer.replay.run import RunOptions, choose, replay
from agentinfer.replay.traces import FORMATS, Trace, read_trace
from agentinfer.replay.truncate import Limits

_REPLAY_EPILOG = (
    "trace formats, told apart by content (plain, .xz, .gz, .bz2; a folder of trajectories works too):\n"
    + "\n".join(f"  {name:<18} {text}" for name, text in FORMATS.items())
)


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands; each parsed one sets `args.run`, which takes the namespace and returns the exit status."""
    _add_replay(subparsers)
    _add_report(subparsers)


def _add_replay(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    whole = _number(int, 0, "a whole number from 0")
    positive = _number(int, 1, "a whole number from 1")
    seconds = _number(float, 0.0, "a number from 0")
    above_zero = _number(float, 1e-3, "a number above 0")
    fraction = _number(float, 0.0, "a number from 0 to 1", high=1.0)
    parser = subparsers.add_parser(
        "replay",
        help="drive a live server with recorded agent sessions",
        description="Drive a live server with recorded agent sessions in a closed loop, and measure.",
        epilog=_REPLAY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trace", required=True, metavar="FILE", help="recorded sessions, or bfcl:CATEGORY")
    add("--list", action="store_true", help="show what the trace holds, and stop")
    add("--url", default="http://127.0.0.1:30000", help="the server (default %(default)s)")
    add("--model", metavar="NAME", help="model to ask for (default: the first that the server lists)")
    choice = parser.add_argument_group("sessions")
    add = choice.add_argument
    add("--sessions", type=positive, metavar="N", help="sessions to count (default: all in the trace)")
    add("--concurrency", type=positive, default=1, metavar="C", help="sessions live at once (default %(default)s)")
    add("--warmup", type=whole, default=0, metavar="K", help="sessions played before, not counted (default 0)")
    add("--shuffle", action="store_true", help="take sessions in an order that --seed fixes, not the trace's")
    add("--max-turns", type=positive, metavar="N", help="cut each session after N turns")
    add(
        "--max-context",
        type=positive,
        metavar="TOKENS",
        help="cut each session's tail where prompt and reply pass TOKENS (default: the server's window)",
    )
    add(
        "--max-message-tokens",
        type=positive,
        metavar="N",
        help="clip the middle out of user and tool messages longer than N tokens",
    )
    waits = parser.add_argument_group("waits between turns")
    add = waits.add_argument
    add("--gap-scale", type=seconds, default=1.0, metavar="X", help="times the recorded tool gaps; 0: no waits")
    add("--default-gap", type=seconds, default=0.0, metavar="S", help="seconds where the trace has no times")
    add("--gap-jitter", type=fraction, default=0.0, metavar="F", help="vary each gap by up to this fraction")
    add("--start-spread", type=seconds, default=0.0, metavar="S", help="start the first sessions within S seconds")
    add("--seed", type=int, default=0, help="of order, jitter and spread (default %(default)s)")
    requests = parser.add_argument_group("requests")
    add = requests.add_argument
    add(
        "--forced",
        action="store_true",
        help="the engine emits the recorded replies (server started with --agentinfer-forced-replay). Without this "
        "the model answers freely: its replies are timed and thrown away, the recorded ones go on in the history",
    )
    add(
        "--no-hints",
        action="store_true",
        help="send no session hints; else id, turn, the tool about to run and whether it is the last turn go along, "
        "as a well-informed client would",
    )
    add("--inline-reasoning", action="store_true", help="recorded reasoning becomes <think> text of the reply")
    add("--max-tokens", type=positive, default=1024, metavar="N", help="longest free reply (default %(default)s)")
    add("--temperature", type=seconds, default=0.0, metavar="T", help="of free replies (default %(default)s)")
    add("--timeout", type=above_zero, default=600.0, metavar="S", help="seconds a turn may take (default 600)")
    add("--flush-cache", action="store_true", help="empty the server's prefix cache first")
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--json", metavar="FILE", help="write figures, raw samples and provenance")
    add("--perfetto", metavar="FILE", help="write a timeline for ui.perfetto.dev, a row a session")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run_replay)


def _add_report(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "report",
        help="compare replays pairwise",
        description="Compare replays of the same sessions: the first file is the base, each other is set against it.",
    )
    parser.add_argument("base", metavar="A.json", help="written by `agentinfer replay --json`")
    parser.add_argument("runs", nargs="+", metavar="B.json")
    parser.add_argument("--svg", metavar="FILE", help="write the comparison as a picture")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default %(default)s)")
    parser.set_defaults(run=run_report)


def run_replay(args: argparse.Namespace) -> int:
    """Exit status 0 when every turn was answered (forced: as recorded), 1 when not, 2 when it could not run."""
    try:
        for name in (args.json, args.perfetto):
            _check_writable(name)
        trace = read_trace(args.trace)
        options = _options(args)
        if args.list:
            print(_listing(trace, options))
            return 0
        progress = None if args.quiet else sys.stderr
        done = asyncio.run(replay(trace, options, ["agentinfer", *sys.argv[1:]], progress))
    except AgentInferError as error:
        print(f"agentinfer replay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("agentinfer replay: interrupted; nothing was written", file=sys.stderr)
        return 130
    if args.json:
        _write_json(args.json, done.result, indent=1)
    if args.perfetto:
        _write_json(args.perfetto, perfetto.chrome_trace(done.sessions), indent=None)
    print(table.result_table(done.result))
    return 1 if done.result["errors"] or done.result["forced_mismatches"] else 0


def run_report(args: argparse.Namespace) -> int:
    """Exit status 0, or 2 when a file is no result or two share no session."""
    try:
        _check_writable(args.svg)
        base = report.load_run(args.base)
        reports = [report.compare(base, report.load_run(name), args.seed) for name in args.runs]
    except AgentInferError as error:
        print(f"agentinfer report: {error}", file=sys.stderr)
        return 2
    print("\n\n".join(report.text(one) for one in reports))
    if args.svg:
        Path(args.svg).write_text(picture.draw(reports), encoding="utf-8")
    return 0


def _options(args: argparse.Namespace) -> RunOptions:
    return RunOptions(
        url=args.url.rstrip("/").removesuffix("/v1"),
        model=args.model,
        sessions=args.sessions,
        warmup=args.warmup,
        forced=args.forced,
        send_hints=not args.no_hints,
        shuffle=args.shuffle,
        flush_cache=args.flush_cache,
        inline_reasoning=args.inline_reasoning,
        timeout_s=args.timeout,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        limits=Limits(args.max_context, args.max_message_tokens, args.max_turns),
        loop=LoopOptions(
            concurrency=args.concurrency,
            gap_scale=args.gap_scale,
            default_gap_s=args.default_gap,
            gap_jitter=args.gap_jitter,
            start_spread_s=args.start_spread,
            seed=args.seed,
        ),
    )


def _listing(trace: Trace, options: RunOptions) -> str:
    rows = []
    for session in choose(trace, options):
        gaps = [t.gap_s for t in session.turns if t.gap_s is not None]
        tools = sorted({name for t in session.turns for name in t.tools})
        rows.append(
            (
                session.id,
                str(len(session.turns)),
                f"{len(json.dumps(session.messages, ensure_ascii=False)):,}",
                table.figure(sum(gaps)) if gaps else "-",
                str(len(session.tool_schemas)),
                ", ".join(tools[:4]) + (" ..." if len(tools) > 4 else "") or "-",
            )
        )
    head = f"{trace.name}: {trace.format}, {len(trace.sessions)} sessions, sha256 {trace.sha256[:16]}"
    return head + "\n" + table.render(("session", "turns", "characters", "gaps s", "schemas", "tools called"), rows)


def _check_writable(name: str | None) -> None:
    """Found out before the run, not after it."""
    if name is not None and not Path(name).absolute().parent.is_dir():
        raise AgentInferError(f"{name}: its folder does not exist, so the result could not be written there")


def _write_json(name: str, value: Any, indent: int | None) -> None:
    Path(name).write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def _number(kind: type[int] | type[float], low: float, expected: str, high: float = 1e12) -> Callable[[str], float]:
    """An argparse type for numbers from `low` to `high`; the error says what was expected."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind("-1")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse
