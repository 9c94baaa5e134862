"""Where two texts part, and what the part that differs looks like: a clock, an id, a counter."""

from __future__ import annotations

import re
from typing import Final

CONTEXT_CHARS: Final = 40


def first_difference(ours: str, theirs: str) -> int:
    """The length of the common prefix. Slices compare at the speed of memcmp, so halve instead of walking."""
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def around(text: str, at: int) -> str:
    """The characters of `text` around a position, escaped, with an ellipsis where it goes on."""
    start, end = max(0, at - CONTEXT_CHARS), at + CONTEXT_CHARS
    shown = repr(text[start:end])[1:-1]
    return ("…" if start else "") + shown + ("…" if end < len(text) else "")


def kind_of_difference(ours: str, theirs: str, at: int) -> str | None:
    """What stands at the difference in both texts: ``uuid``, ``timestamp``, ``counter``, or None."""
    for kind, pattern in _KINDS:
        if _spans(pattern, ours, at) and _spans(pattern, theirs, at):
            return kind
    return None


def _spans(pattern: re.Pattern[str], text: str, at: int) -> bool:
    start = max(0, at - CONTEXT_CHARS)
    window = text[start : at + CONTEXT_CHARS]
    return any(match.start() <= at - start <= match.end() for match in pattern.finditer(window))


_KINDS: Final = (
    ("uuid", re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|\b(?=\w*[a-f])[0-9a-f]{16,64}\b")),
    (
        "timestamp",
        re.compile(
            r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"
            r"|\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?: ?[AaPp][Mm])?"
            r"|\d{1,2}[./]\d{1,2}[./]\d{2,4}"
            r"|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,? (?:\d{1,2} \w{3,9}|\w{3,9} \d{1,2})"
            r"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* \d{1,2}(?:, \d{4})?"
            r"|\b1[0-9]{9}(?:\d{3}|\.\d+)?\b"
        ),
    ),
    ("counter", re.compile(r"\b\d+\b")),
)
