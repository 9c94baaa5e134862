"""What failed, out of tools' results: the line that tells of it, word for word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from agentinfer.compress.anchors import is_borne_out
from agentinfer.compress.distiller import Assignment
from agentinfer.compress.note import Line

# The last line of a traceback or of a compiler's complaint; and how a shell tells of failure.
_FAILURE: Final = re.compile(
    r"(?:[\w.]*(?:Error|Exception|Interrupt)\b(?::|$)|(?:error|fatal|FAILED|E\s{3})\b).*"
    r"|.*?:\s(?:error|fatal error|command not found|No such file or directory|Permission denied)\b.*"
)
_EXIT: Final = re.compile(
    r"<returncode>(-?[1-9]\d*)</returncode>|\b[Ee]xit(?:ed with)?(?: code| status)[: ]+(-?[1-9]\d*)"
)
# Of the budget, what failures may take before anything else gets in.
_FAILURE_SHARE: Final = 0.12
_FAILURE_CHARS: Final = 120


def fitting_failures(assignment: Assignment, sources: Mapping[int, str]) -> tuple[Line, ...]:
    """Failures, each kind once, the latest ones where not all keep within their share of the budget."""
    found: list[Line] = []
    seen: set[str] = set()
    left = assignment.budget_chars * _FAILURE_SHARE - len("Failed:\n\n")
    for each in reversed(assignment.observations):
        text = _failure(each.text)
        price = len(text) + len(f"[{each.id}] \n")
        if text and text not in seen and price <= left and is_borne_out(text, sources[each.index]):
            seen.add(text)
            left -= price
            found.append(Line(text, each.index))
    return tuple(reversed(found))


def _failure(text: str) -> str:
    """The last line that tells of a failure, or the exit code; empty where nothing failed."""
    code = _EXIT.search(text)
    for line in reversed(text[-20_000:].splitlines()):
        stripped = line.strip()
        if len(stripped) <= 4 * _FAILURE_CHARS and _FAILURE.fullmatch(stripped):
            return cut_at_blank(stripped, _FAILURE_CHARS)
    return code[0].removeprefix("<").split("</")[0].replace(">", " ") if code else ""


def cut_at_blank(text: str, room: int) -> str:
    """Its first whole words, as many as there is room for."""
    return text if len(text) <= room else text[: max(0, room)].rpartition(" ")[0].rstrip()
