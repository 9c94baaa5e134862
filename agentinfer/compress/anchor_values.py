"""What an anchor of an observation is worth in a note: the chance that a later turn of the agent uses it.

The rates are shares of use that were measured over recorded coding sessions: of anchors of that kind that first
appeared in a compressed result and were not in what stays, the share that a later turn of the agent used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from agentinfer.compress.anchors import Anchor, anchors, find_anchors
from agentinfer.compress.distiller import Assignment
from agentinfer.compress.note import Line

MAX_TEXT_CHARS: Final = 400_000
"""Of an observation, what is read for a note."""

_RATES: Final = {"url": 0.005, "path": 0.008, "flag": 0.05, "quoted": 0.05}
_ERROR_NAME: Final = re.compile(r"\w*(?:Error|Exception|Warning)")
_FILE: Final = re.compile(r".*\.(?:py|pyi|rst|txt|cfg|toml|md|js|ts|c|h|cc|cpp|go|rs|java|json|ya?ml|ini|sh)")
_DEFINES: Final = re.compile(r"\b(?:def|class|func|fn|function|struct|interface|type|const)\s+$")
_LISTED_DEFINITION: Final = re.compile(r":\s*(?:async )?(?:def|class|func|fn|function)\b")
# An observation of more anchors than this is a long file or listing, of whose anchors fewer are used.
_CROWD: Final = 120


def anchor_values(assignment: Assignment, failures: Iterable[Line]) -> Mapping[tuple[int, str], float]:
    """By source and anchor the chance that a later turn uses it; without those that stay in the context anyway."""
    said = "\n".join(
        (assignment.task, assignment.reasoning, *(each.arguments_text for each in assignment.observations))
    )
    stays = {*anchors(said), *(anchor for line in failures for anchor in anchors(line.text))}
    values: dict[tuple[int, str], float] = {}
    first: set[str] = set()
    for each in assignment.observations:
        text = each.text[:MAX_TEXT_CHARS]
        found = list(find_anchors(text))
        counts = Counter(anchor.text for anchor in found)
        crowd = min(1.0, _CROWD / max(1, len(counts)))
        for anchor in found:
            key = (each.index, anchor.text)
            if anchor.text in first or anchor.text in stays or len(anchor.text) < 2 or len(anchor.text) > 120:
                continue
            first.add(anchor.text)
            count = counts[anchor.text]
            values[key] = (
                _rate(anchor, text)
                * (1.0 if count == 1 else 2.0 if count == 2 else 3.0)
                * (1.3 - 0.5 * anchor.start / max(1, len(text)))
                * crowd
            )
    return values


def _rate(anchor: Anchor, text: str) -> float:
    before = text[max(0, anchor.start - 24) : anchor.start]
    end = anchor.start + len(anchor.text)
    if anchor.kind == "number":
        starts_line = not before.rpartition("\n")[2].strip()
        if starts_line:
            return 0.06 if _LISTED_DEFINITION.match(text, end) else 0.03 if text[end : end + 1] == ":" else 0.01
        return 0.07 if len(anchor.text) <= 2 else 0.03
    if anchor.kind != "name":
        return _RATES[anchor.kind]
    if _FILE.fullmatch(anchor.text):
        return 0.01
    if _DEFINES.search(before) or _ERROR_NAME.fullmatch(anchor.text):
        return 0.09
    return 0.08 if anchor.text.isupper() else 0.055
