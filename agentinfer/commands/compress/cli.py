"""`agentinfer compress`: flags, tables, files and exit status."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agentinfer.commands.compress.html import page
from agentinfer.commands.compress.sessions import SessionFigures, compressed
from agentinfer.commands.compress.tokens import PromptTokens
from agentinfer.compress.extractive import ExtractiveDistiller
from agentinfer.compress.settings import Settings
from agentinfer.errors import AgentInferError
from agentinfer.replay import read_trace, table
from agentinfer.replay.session import Session


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command. It sets ``args.run``, which takes `args` and returns an exit status."""
    default = Settings()
    parser = subparsers.add_parser(
        "compress",
        help="what AgentCompress would do to recorded sessions",
        description="Take recorded agent sessions through AgentCompress as if they were live, and show what a model "
        "would have read. No server and no model is needed: notes are extracted from the results.",
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="recorded sessions, all that `agentinfer replay` reads")
    add("--session", metavar="ID", action="append", help="only this session (may be given several times)")
    add("--html", metavar="OUT", help="write a page with both histories side by side")
    add("--json", metavar="OUT", help="write the record: every turn, what was taken, the notes")
    add("--turns", action="store_true", help="print a line for each turn at which something happens")
    add("--payloads", action="store_true", help="also cut long texts in the arguments of old calls")
    add(
        "--threshold-tokens",
        type=_whole,
        default=default.threshold_tokens,
        metavar="N",
        help="no compression below a prompt of N tokens (default %(default)s)",
    )
    add(
        "--keep-recent-steps",
        type=_whole,
        default=default.keep_recent_steps,
        metavar="N",
        help="steps whose results stay whole (default %(default)s)",
    )
    add("--note-turns", type=_whole, default=1, metavar="N", help="turns that a note takes (default %(default)s)")
    parser.set_defaults(run=_compress)


def _compress(args: argparse.Namespace) -> int:
    for name in (args.html, args.json):
        if name is not None and not Path(name).absolute().parent.is_dir():
            raise AgentInferError(f"{name}: its folder does not exist, so the result could not be written there")
    settings = replace(
        Settings(),
        threshold_tokens=args.threshold_tokens,
        keep_recent_steps=args.keep_recent_steps,
        take_payloads=args.payloads,
    )
    trace = read_trace(args.file)
    counter = PromptTokens()
    distiller = ExtractiveDistiller()
    found = [
        compressed(session, distiller.note, settings, counter, args.note_turns)
        for session in _chosen(trace.sessions, args.session, args.file)
    ]
    if args.json:
        record = {
            "format": "agentinfer.compress",
            "version": 1,
            "trace": {"name": Path(args.file).name, "sha256": trace.sha256},
            "token_counts": counter.source,
            "settings": asdict(settings),
            "note_turns": args.note_turns,
            "sessions": [each.to_json() for each in found],
            "command": shlex.join(["agentinfer", *sys.argv[1:]]),
        }
        _write(args.json, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if args.html:
        _write(args.html, page(found, counter.source))
    if args.turns:
        print(_turns(found))
        print()
    print(_summary(found))
    print(f"token counts: {counter.source}")
    return 0


def _chosen(sessions: list[Session], wanted: list[str] | None, file: str) -> list[Session]:
    if not wanted:
        return sessions
    by_id = {session.id: session for session in sessions}
    for name in wanted:
        if name not in by_id:
            known = ", ".join(list(by_id)[:8]) + (", ..." if len(by_id) > 8 else "")
            raise AgentInferError(f"--session {name}: not in {file}; it has {known}")
    return [by_id[name] for name in dict.fromkeys(wanted)]


def _summary(found: list[SessionFigures]) -> str:
    heads = ("session", "turns", "swaps", "last prompt", "after", "saved", "all prompts", "after", "saved")
    rows = [_summary_row(each.id, [each]) for each in found]
    if len(found) > 1:
        rows.append(_summary_row("all", found))
    return table.render(heads, rows)


def _summary_row(name: str, found: list[SessionFigures]) -> tuple[str, ...]:
    last_before = sum(each.turns[-1].tokens_before for each in found)
    last_after = sum(each.turns[-1].tokens_after for each in found)
    before = sum(each.tokens_before for each in found)
    after = sum(each.tokens_after for each in found)
    return (
        name,
        f"{sum(len(each.turns) for each in found):,}",
        f"{sum(each.swaps for each in found):,}",
        f"{last_before:,}",
        f"{last_after:,}",
        f"{100 * (1 - last_after / last_before):.1f} %",
        f"{before:,}",
        f"{after:,}",
        f"{100 * (1 - after / before):.1f} %",
    )


def _turns(found: list[SessionFigures]) -> str:
    rows = []
    for session in found:
        for turn in session.turns:
            said = _events(turn.to_json())
            if said:
                rows.append((session.id, str(turn.turn), f"{turn.tokens_before:,}", f"{turn.tokens_after:,}", said))
    return table.render(("session", "turn", "before", "after", "what happens"), rows)


def _events(turn: dict[str, Any]) -> str:
    said = []
    if "swapped" in turn:
        said.append(f"swap, {100 * turn['swapped']['warm_share']:.1f}% warm")
    if "started" in turn:
        said.append(f"job {turn['started']['job']} starts, results: {len(turn['started']['taken'])}")
    if "note" in turn:
        said.append(f"note, lines: {len(turn['note']['facts']) + len(turn['note']['dead_ends'])}")
    said += [f"{each['how']}: {each['why']}" for each in turn.get("ended", ())]
    return "; ".join(said)


def _write(name: str, text: str) -> None:
    unfinished = Path(f"{name}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="replace")
        os.replace(unfinished, name)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise AgentInferError(f"{name}: cannot be written: {error.strerror or error}") from error


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) > 10**9:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)
