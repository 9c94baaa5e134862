"""`agentinfer status`: what a running server says about its agent sessions and the tools they call."""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from agentinfer.errors import AgentInferError

_TIMEOUT_S: Final = 10.0
_UNITS_S: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`status`: what it prints is as the server sent it, but for the table of tools."""
    status = subparsers.add_parser("status")
    status.add_argument("--url", default="http://127.0.0.1:30000", help="the server's address (default: %(default)s)")
    status.add_argument("--json", action="store_true", help="print the answer as it came")
    status.set_defaults(run=_status)


def _status(args: argparse.Namespace) -> int:
    body = _asked(args.url.rstrip("/") + "/agentinfer/status")
    if args.json:
        print(body)
        return 0
    seen = json.loads(body)
    tools = seen.pop("tools", None) if isinstance(seen, dict) else None
    lines = _indented(seen)
    if isinstance(tools, dict):
        lines += ["tools:", *("  " + line for line in tool_table(tools))] if tools else ["tools: none was called yet"]
    print("\n".join(lines))
    return 0


def tool_table(tools: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of a table of how long tools take now: old gaps count less and less.

    ``gaps`` counts all ever seen, ``never`` is the share of calls whose session did not come back, ``latest`` the
    newest gap and ``seen`` how long ago it ended.
    """
    rows: list[tuple[str, ...]] = [("tool", "gaps", "p50", "p90", "p99", "never", "latest", "seen")]
    for name, tool in tools.items():
        never = tool.get("never_share") or 0.0
        age_s = tool.get("latest_age_s")
        rows.append(
            (
                name if name.isprintable() else repr(name),
                str(tool.get("count", "–")),
                *(_duration(tool.get(share)) for share in ("p50_s", "p90_s", "p99_s")),
                f"{100 * never:.1f}%" if never else "–",
                _duration(tool.get("latest_s")),
                "–" if age_s is None else f"{_duration(age_s)} ago",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _asked(address: str) -> str:
    """The server's answer, which is JSON. Raises AgentInferError saying what came instead and what to do."""
    try:
        request = urllib.request.Request(address, headers={"accept": "application/json"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            body: str = answer.read().decode()
        json.loads(body)
    except urllib.error.HTTPError as error:
        advice = "was the server started by agentinfer, with sessions on?" if error.code == 404 else error.reason
        raise AgentInferError(f"{address} answered HTTP {error.code}: {advice}") from None
    except (OSError, ValueError) as error:
        raise AgentInferError(f"{address} gave no status: {error}. Is a server there? Try --url") from None
    return body


def _duration(seconds: Any) -> str:
    """Two to three digits and a unit; a dash for what is not known."""
    if not isinstance(seconds, int | float):
        return "–"
    for size_s, unit in _UNITS_S:
        if seconds >= size_s:
            return f"{seconds / size_s:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


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
