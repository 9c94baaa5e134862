"""`agentinfer corpus stats | import | export | prune | verify`: flags, tables and exit status."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agentinfer.commands.corpus import filling, lines
from agentinfer.commands.corpus.recorded import ModelTokenizer
from agentinfer.errors import AgentInferError
from agentinfer.replay import table
from agentinfer.replay.traces import read_trace
from agentinfer.spec_sam.store import ContextStore, StoreOptions, verify_store
from agentinfer.spec_sam.store.folder import check
from agentinfer.spec_sam.store.stats import StoreStats

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_NAMESPACE = "default"
# Only a server, or --max-mb, bounds a store: looking into it must not throw anything out.
_UNBOUNDED = StoreOptions(max_bytes=1 << 62)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_commands(subparsers: Subparsers) -> None:
    """Adds `corpus` and its sub-commands. Each sets ``args.run``, which takes `args` and returns an exit status."""
    parser = subparsers.add_parser("corpus", help="the store of contexts that drafts come from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    stats = _command(commands, "stats", "what is stored, by namespace")
    stats.add_argument("--json", action="store_true", help="print it as JSON")
    stats.set_defaults(run=_stats)

    load = _command(commands, "import", "store recorded sessions, or what `corpus export` wrote")
    load.add_argument("file", metavar="FILE", help="any trace that `agentinfer replay` reads, or an exported file")
    load.add_argument("--model", help="whose template and tokenizer render the sessions: a folder, or embedded:NAME")
    load.add_argument("--namespace", help=f"default: {DEFAULT_NAMESPACE}, or as exported")
    load.add_argument("--max-mb", type=_megabytes, metavar="N", help="bound the store; the least useful contexts go")
    load.set_defaults(run=_import)

    export = _command(commands, "export", "write contexts as JSON lines of token ids")
    export.add_argument("--namespace", help="default: all")
    export.add_argument("--out", metavar="FILE", help="default: standard output")
    export.set_defaults(run=_export)

    prune = _command(commands, "prune", "remove contexts: a namespace, old ones, or the least useful ones")
    prune.add_argument("--max-mb", type=_megabytes, metavar="N", help="down to N MB, by usefulness a byte")
    prune.add_argument("--older-than", type=_duration_s, metavar="AGE", help="stored longer ago than 90s, 15m, 12h, 7d")
    prune.add_argument("--namespace", help="only of this one; alone: all of it")
    prune.set_defaults(run=_prune)

    verify = _command(commands, "verify", "read every byte and compare checksums; changes nothing")
    verify.set_defaults(run=_verify)


def _command(commands: Subparsers, name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("--store", required=True, metavar="DIR", help="the store's folder")
    return parser


def _stats(args: argparse.Namespace) -> int:
    with ContextStore(args.store, None, read_only=True) as store:
        stats = store.stats()
    if args.json:
        print(json.dumps(dataclasses.asdict(stats), indent=1))
    else:
        print(_table(stats))
    return 0


def _import(args: argparse.Namespace) -> int:
    path = Path(args.file)
    exported = lines.tokenizer_of(path) if path.is_file() else None
    options = _UNBOUNDED if args.max_mb is None else StoreOptions(max_bytes=args.max_mb)
    if exported is not None:
        with ContextStore(args.store, exported, options=options) as store:
            filled = filling.fill_exported(store, path, args.namespace)
    else:
        trace = read_trace(args.file)
        if args.model is None:
            raise AgentInferError(f"{path}: text has to be tokenised; name the model: --model PATH or embedded:NAME")
        tokenizer = ModelTokenizer(args.model)
        with ContextStore(args.store, tokenizer.fingerprint, options=options) as store:
            namespace = args.namespace or DEFAULT_NAMESPACE
            filled = filling.fill_recorded(store, namespace, trace.sessions, tokenizer, _progress)
    print(f"{filled.sessions} sessions stored in {filled.contexts} contexts", end="")
    print(f"; {filled.skipped} were there already" if filled.skipped else "")
    return 0


def _export(args: argparse.Namespace) -> int:
    with ContextStore(args.store, None, read_only=True) as store:
        if args.namespace is not None:
            store.check_namespace(args.namespace)
        contexts = store.contexts(args.namespace)
        if args.out is None:
            for line in lines.export(store, contexts):
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            return 0
        unfinished = Path(f"{args.out}.tmp")
        try:
            with unfinished.open("wb") as file:
                file.writelines(lines.export(store, contexts))
            os.replace(unfinished, args.out)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise AgentInferError(f"{args.out}: cannot be written: {error.strerror or error}") from error
    print(f"{len(contexts)} contexts written to {args.out}")
    return 0


def _prune(args: argparse.Namespace) -> int:
    if args.max_mb is None and args.older_than is None and args.namespace is None:
        raise AgentInferError("nothing to prune by; give --max-mb, --older-than or --namespace")
    check(Path(args.store))
    max_bytes = 0 if args.max_mb is None and args.older_than is None else args.max_mb
    with ContextStore(args.store, None, options=_UNBOUNDED) as store:
        before = store.size_bytes
        removed = store.evict(max_bytes, namespace=args.namespace, older_than_s=args.older_than)
        freed = before - store.size_bytes
        print(f"{len(removed)} contexts removed, {freed:,} bytes freed, {store.size_bytes:,} left")
    return 0


def _verify(args: argparse.Namespace) -> int:
    found = verify_store(args.store)
    for damage in found.damage:
        print(f"corrupt: {damage}", file=sys.stderr)
    for damage in found.writer_tails:
        print(f"being written: {damage}")
    state = f"{len(found.damage)} faults" if found.damage else "ok"
    print(f"{state}  {found.segments} segments, {found.contexts} contexts, {found.size_bytes:,} bytes")
    return 1 if found.damage else 0


def _table(stats: StoreStats) -> str:
    rows = [
        (
            row.namespace,
            table.figure(row.sessions),
            table.figure(row.contexts),
            table.figure(row.tokens),
            table.figure(row.size_bytes),
            table.figure(row.usefulness),
        )
        for row in stats.namespaces
    ]
    head = f"tokenizer {stats.tokenizer or '-'}, {stats.segments} segments, {stats.size_bytes:,} bytes"
    if stats.set_aside:
        head += f"; {stats.set_aside} damaged segments set aside (*.corrupt), remove them when looked at"
    return head + "\n" + table.render(("namespace", "sessions", "contexts", "tokens", "bytes", "usefulness"), rows)


def _progress(session: str) -> None:
    print(f"stored {session}", file=sys.stderr)


def _megabytes(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.01 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"expected megabytes from 0.01, got {text!r}")
    return int(value * 1e6)


def _duration_s(text: str) -> float:
    try:
        value = float(text[:-1]) * _SECONDS[text[-1:]]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 <= value < 1e12:
        raise argparse.ArgumentTypeError(f"expected an age such as 90s, 15m, 12h or 7d, got {text!r}")
    return value
