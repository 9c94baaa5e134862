"""`agentinfer collab calibrate | show`: flags, progress, tables and exit status."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import aiohttp

from agentinfer.clock import Clock, SystemClock
from agentinfer.collab_lang import threshold as thresholds
from agentinfer.collab_lang.settings import Check, CollabSettings
from agentinfer.collab_lang.threshold import MIN_SAMPLES, Threshold, fit, share_under
from agentinfer.commands.collab.judging import Judge, Judged, JudgingError, find_model, steps_of
from agentinfer.errors import AgentInferError
from agentinfer.replay import read_trace, table
from agentinfer.replay.traces import Trace

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

# Shown beside the wished one, so that its neighbours can be weighed without another run.
_RATES: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
_BINS: Final = 10
_BAR_CHARS: Final = 40
_TELL_EVERY_S: Final = 5.0


def add_commands(subparsers: Subparsers) -> None:
    """Adds `collab` and its sub-commands. Each sets ``args.run``, which takes `args` and returns an exit status."""
    parser = subparsers.add_parser("collab", help="a small and a large model on one trajectory: its threshold")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    calibrate = commands.add_parser(
        "calibrate",
        help="fit the threshold of a model's progress checks to how often the large model may be called",
        description="Have a running engine, the small model's, check the steps of recorded sessions, and find the "
        "probability of TRUE under which the wished share of them lies.",
    )
    add = calibrate.add_argument
    add("--base-url", required=True, metavar="URL", help="the engine, with or without /v1")
    add("--model", metavar="NAME", help="as the engine names it (default: the only one that it serves)")
    add("--trace", required=True, metavar="FILE", help="recorded sessions, all that `agentinfer replay` reads")
    add("--sessions", type=_whole, metavar="N", help="only the first N sessions")
    add("--steps", type=_whole, metavar="N", help="only N of their steps, spread evenly (default: all)")
    add("--target-rate", required=True, type=_share, metavar="R", help="share of steps to escalate, such as 0.2")
    add("--check", choices=("block", "verdict"), default="block", help="the form of the check (default %(default)s)")
    add("--parallel", type=_whole, default=4, metavar="N", help="checks at once (default %(default)s)")
    add("--timeout-s", type=_whole, default=600, metavar="S", help="longest wait for one check (default %(default)s)")
    add("--api-key", metavar="KEY", help="sent as the bearer token")
    add("--out", required=True, metavar="FILE", help="write the threshold, for --agentinfer-collab-threshold-file")
    add("--json", metavar="FILE", help="also write each step's probability")
    calibrate.set_defaults(run=_calibrate)
    show = commands.add_parser("show", help="what a threshold file says", description="What a threshold file says.")
    show.add_argument("file", metavar="FILE", help="what `agentinfer collab calibrate` has written")
    show.set_defaults(run=_show)


def _calibrate(args: argparse.Namespace) -> int:
    for name in (args.out, args.json):
        if name is not None and not Path(name).absolute().parent.is_dir():
            raise AgentInferError(f"{name}: its folder does not exist, so the result could not be written there")
    trace = read_trace(args.trace)
    model, judged = asyncio.run(_judged(args, trace))
    probabilities = [step.p_true for step in judged.steps]
    found = fit(probabilities, args.target_rate, model, args.check)
    thresholds.write(found, Path(args.out))
    if args.json:
        _write_samples(args.json, found, judged, trace)
    print(f"P(TRUE) of {len(probabilities)} steps, {args.check} check, {model}:")
    print("\n".join(histogram(probabilities)))
    print()
    rates = sorted({*_RATES, args.target_rate})
    print(_table([fit(probabilities, rate, model, args.check) for rate in rates]))
    print(f"a threshold of 0.5, what greedy decoding says: {share_under(probabilities, 0.5):.1%}")
    if judged.unreadable or judged.refused:
        print(f"without a verdict: {_missing(judged)}")
    print(f"{args.out}: {found.value:.6g}, expected to escalate {_expected(found)}")
    return 0


async def _judged(args: argparse.Namespace, trace: Trace) -> tuple[str, Judged]:
    steps = steps_of(trace.sessions[: args.sessions], args.steps)
    if len(steps) < MIN_SAMPLES:
        raise AgentInferError(
            f"{args.trace}: {len(steps)} steps to judge (a session's last is none), expected at least {MIN_SAMPLES}; "
            "take more sessions, or more steps of them"
        )
    base_url = args.base_url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    settings = replace(CollabSettings(), check=Check(args.check))
    async with aiohttp.ClientSession(headers=headers) as http:
        model = await find_model(http, base_url, args.model)
        progress = _Progress(sys.stderr, SystemClock(), len(steps))
        judge = Judge(http, base_url, model, settings, args.parallel, args.timeout_s, progress.tell)
        judged = await judge.judge(steps)
    if len(judged.steps) < MIN_SAMPLES:
        raise JudgingError(
            f"{len(judged.steps)} of {len(steps)} steps have a verdict, expected at least {MIN_SAMPLES}: "
            f"{_missing(judged)}"
        )
    # A model served from a folder is named by its path; which one it is, the last part says.
    return model.rstrip("/").rpartition("/")[2], judged


class _Progress:
    """A line to `stream` every few seconds, and one at the end."""

    def __init__(self, stream: TextIO, clock: Clock, num_steps: int) -> None:
        self._stream = stream
        self._clock = clock
        self._num_steps = num_steps
        self._began_s = self._told_s = clock.monotonic_s()

    def tell(self, judged: Judged) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._told_s < _TELL_EVERY_S and judged.done < self._num_steps:
            return
        self._told_s = now_s
        missing = f", {judged.done - len(judged.steps)} without a verdict" if judged.done > len(judged.steps) else ""
        self._stream.write(
            f"calibrate: {judged.done}/{self._num_steps} steps{missing}, {now_s - self._began_s:.0f} s\n"
        )
        self._stream.flush()


def histogram(probabilities: Sequence[float]) -> list[str]:
    """A line for each tenth from 0 to 1: its bounds, how many lie in it, a bar."""
    counts = [0] * _BINS
    for each in probabilities:
        counts[min(_BINS - 1, int(each * _BINS))] += 1
    most = max(counts)
    width = len(str(most))
    return [
        f"  {place / _BINS:.1f}-{(place + 1) / _BINS:.1f}  {count:>{width}}  {'#' * _bar(count, most)}".rstrip()
        for place, count in enumerate(counts)
    ]


def _bar(count: int, most: int) -> int:
    """What is there has at least one mark."""
    return max(round(_BAR_CHARS * count / most), count > 0) if most else 0


def _table(found: Sequence[Threshold]) -> str:
    rows = [(f"{each.target_rate:.1%}", f"{each.value:.6g}", f"{each.rate:.1%}", _interval(each)) for each in found]
    return table.render(("target", "threshold", "escalated", "95% interval"), rows)


def _interval(found: Threshold) -> str:
    return f"{found.rate_low:.1%} to {found.rate_high:.1%}"


def _expected(found: Threshold) -> str:
    return f"{found.rate:.1%} of steps ({_interval(found)})"


def _missing(judged: Judged) -> str:
    parts = []
    if judged.refused:
        parts.append(f"{judged.refused} refused, the first with: {judged.first_refusal}")
    if judged.unreadable:
        parts.append(f"{judged.unreadable} answers not in the form asked for; does the engine heed `regex`?")
    return "; ".join(parts) or "none"


def _write_samples(name: str, found: Threshold, judged: Judged, trace: Trace) -> None:
    record: dict[str, Any] = {
        "format": "agentinfer.collab.samples",
        "version": 1,
        "trace": {"name": Path(trace.name).name, "sha256": trace.sha256},
        "threshold": asdict(found),
        "steps": [asdict(step) for step in judged.steps],
        "unreadable": judged.unreadable,
        "refused": judged.refused,
        "command": shlex.join(["agentinfer", *_without_key(sys.argv[1:])]),
    }
    try:
        Path(name).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise AgentInferError(f"{name}: cannot be written: {error.strerror or error}") from error


def _without_key(argv: Sequence[str]) -> list[str]:
    kept = list(argv)
    for place, each in enumerate(argv):
        if each.startswith("--api-key="):
            kept[place] = "--api-key=..."
        elif place and argv[place - 1] == "--api-key":
            kept[place] = "..."
    return kept


def _show(args: argparse.Namespace) -> int:
    found = thresholds.read(Path(args.file))
    rows = [
        ("model", found.model),
        ("check", found.check),
        ("threshold", f"{found.value:.6g}"),
        ("target", f"{found.target_rate:.1%}"),
        ("escalates", _expected(found)),
        ("fitted on", f"{found.samples:,} steps"),
    ]
    print(table.render(("", args.file), rows))
    return 0


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, such as 0.2, got {text!r}")
    return value
