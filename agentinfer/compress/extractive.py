"""Notes without a model: out of each observation, word for word, what later turns most likely need.

The baseline and the fallback of the model that the paper has write its notes (section 3.2). A note is bought as one
buys under a budget: each piece of an observation (an anchor of `agentinfer.compress.anchors`, or a line around several)
has a value, the expected number of its anchors that a later turn will use, and a price, its characters; the pieces of
most value for their price go in first, whichever observation they are from. What the agent itself wrote or was asked
stays in its context anyway and is worth nothing here.

The rates below are shares of use that were measured over recorded coding sessions: of anchors of that kind that first
appeared in a compressed result and were not in what stays, the share that a later turn of the agent used.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentinfer.compress.anchors import Anchor, anchors, find_anchors, occurs
from agentinfer.compress.distiller import Assignment, sources_of
from agentinfer.compress.fidelity import verified
from agentinfer.compress.memory import Observation
from agentinfer.compress.note import Line, Note

_RATES: Final = {"url": 0.005, "path": 0.008, "flag": 0.05, "quoted": 0.05}
_ERROR_NAME: Final = re.compile(r"\w*(?:Error|Exception|Warning)")
_FILE: Final = re.compile(r".*\.(?:py|pyi|rst|txt|cfg|toml|md|js|ts|c|h|cc|cpp|go|rs|java|json|ya?ml|ini|sh)")
_DEFINES: Final = re.compile(r"\b(?:def|class|func|fn|function|struct|interface|type|const)\s+$")
_LISTED_DEFINITION: Final = re.compile(r":\s*(?:async )?(?:def|class|func|fn|function)\b")
# The last line of a traceback or of a compiler's complaint; and how a shell tells of failure.
_FAILURE: Final = re.compile(
    r"(?:[\w.]*(?:Error|Exception|Interrupt)\b(?::|$)|(?:error|fatal|FAILED|E\s{3})\b).*"
    r"|.*?:\s(?:error|fatal error|command not found|No such file or directory|Permission denied)\b.*"
)
_EXIT: Final = re.compile(
    r"<returncode>(-?[1-9]\d*)</returncode>|\b[Ee]xit(?:ed with)?(?: code| status)[: ]+(-?[1-9]\d*)"
)
# An observation of more anchors than this is a long file or listing, of whose anchors fewer are used.
_CROWD: Final = 120
# What a whole line is worth over its anchors alone: it says what they are to each other.
_LINE_BONUS: Final = 1.25
# A shorter number says nothing outside its line, and with fewer letters neither does a line. A note of bare numbers
# would hold more of what is used later, by chance: 18 is in every file.
_MIN_LINE_LETTERS: Final = 8
_MIN_NUMBER_CHARS: Final = 5
_SEPARATOR: Final = "; "
# What a note begins with, and the line break before what failed.
_HEADING_CHARS: Final = len(Note(facts=(Line("", 0),)).text()) - len("[o0] ") + 1
_MAX_LINE_CHARS: Final = 160
_MAX_TEXT_CHARS: Final = 400_000
# Of the budget, what failures may take before anything else gets in.
_FAILURE_SHARE: Final = 0.12
_FAILURE_CHARS: Final = 120


class ExtractiveDistiller:
    """Makes notes of verbatim pieces; the same assignment gives the same note. Holds no state."""

    async def distil(self, assignment: Assignment) -> Note:
        return self.note(assignment)

    def note(self, assignment: Assignment) -> Note:
        """At most `assignment.budget_chars` of text; empty where not one piece fits."""
        sources = sources_of(assignment.observations)
        failures = _fitting_failures(assignment, sources)
        values = _values(assignment, failures)
        left = assignment.budget_chars - len(Note(dead_ends=failures).text()) - _HEADING_CHARS
        chosen = _bought(_pieces(assignment.observations, values), values, sources, left)
        told = {*(piece.source for piece in chosen), *(line.source for line in failures)}
        untold = [each for each in assignment.observations if each.index not in told]
        chosen += _first_words(untold, left - _price(chosen))
        return verified(Note(facts=_lines(chosen), dead_ends=failures), sources).note


@dataclass(frozen=True, slots=True)
class _Piece:
    """Verbatim text at `start` of the observation at `source`. `holds` are the anchors of value in it."""

    text: str
    source: int
    start: int
    holds: tuple[str, ...]


def _lines(pieces: Iterable[_Piece]) -> tuple[Line, ...]:
    by_source: dict[int, list[_Piece]] = {}
    for piece in pieces:
        by_source.setdefault(piece.source, []).append(piece)
    return tuple(
        Line(_SEPARATOR.join(piece.text for piece in sorted(found, key=lambda piece: piece.start)), source)
        for source, found in sorted(by_source.items())
    )


def _fitting_failures(assignment: Assignment, sources: Mapping[int, str]) -> tuple[Line, ...]:
    """Failures, each kind once, the latest ones where not all keep within their share of the budget."""
    found: list[Line] = []
    seen: set[str] = set()
    left = assignment.budget_chars * _FAILURE_SHARE - len("Failed:\n\n")
    for each in reversed(assignment.observations):
        text = _failure(each.text)
        price = len(text) + len(f"[{each.id}] \n")
        if text and text not in seen and price <= left and _stands(text, sources[each.index]):
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
            return _cut_at_blank(stripped, _FAILURE_CHARS)
    return code[0].removeprefix("<").split("</")[0].replace(">", " ") if code else ""


def _values(assignment: Assignment, failures: Iterable[Line]) -> Mapping[tuple[int, str], float]:
    """By source and anchor the chance that a later turn uses it; without those that stay in the context anyway."""
    said = "\n".join(
        (assignment.task, assignment.reasoning, *(each.arguments_text for each in assignment.observations))
    )
    stays = {*anchors(said), *(anchor for line in failures for anchor in anchors(line.text))}
    values: dict[tuple[int, str], float] = {}
    first: set[str] = set()
    for each in assignment.observations:
        text = each.text[:_MAX_TEXT_CHARS]
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


def _pieces(observations: Sequence[Observation], values: Mapping[tuple[int, str], float]) -> list[_Piece]:
    """Each anchor of value that says something by itself, and each line that has one."""
    pieces: list[_Piece] = []
    for each in observations:
        start = 0
        for row in each.text[:_MAX_TEXT_CHARS].split("\n"):
            line = row.strip()
            place = start + len(row) - len(row.lstrip())
            start += len(row) + 1
            if not line:
                continue
            own = [a for a in find_anchors(line) if (each.index, a.text) in values]
            pieces += [
                _Piece(a.text, each.index, place + a.start, (a.text,))
                for a in own
                if a.kind != "number" or len(a.text) >= _MIN_NUMBER_CHARS
            ]
            if len(line) <= _MAX_LINE_CHARS and own and sum(map(str.isalpha, line)) >= _MIN_LINE_LETTERS:
                pieces.append(_Piece(line, each.index, place, tuple(a.text for a in own)))
    return pieces


def _bought(
    pieces: Sequence[_Piece], values: Mapping[tuple[int, str], float], sources: Mapping[int, str], left: float
) -> list[_Piece]:
    """Greedy by value for price; a piece whose anchors were bought in part goes back with what is left of its value."""
    opened: set[int] = set()
    had: set[tuple[int, str]] = set()

    def worth(piece: _Piece) -> float:
        gain = sum(values[piece.source, a] for a in set(piece.holds) if (piece.source, a) not in had)
        gain *= _LINE_BONUS if len(piece.text) > len(piece.holds[0]) else 1.0
        return gain / (len(piece.text) + len(_SEPARATOR))

    queue = [(-worth(piece), place) for place, piece in enumerate(pieces)]
    heapq.heapify(queue)
    chosen: list[_Piece] = []
    while queue and left > 4:
        was, place = heapq.heappop(queue)
        piece = pieces[place]
        now = -worth(piece)
        if now == 0.0:
            continue
        if now > was:
            heapq.heappush(queue, (now, place))
            continue
        if not _stands(piece.text, sources[piece.source]):
            continue
        price = len(piece.text) + (len(_SEPARATOR) if piece.source in opened else len(f"[o{piece.source}] ") + 1)
        if price > left:
            continue
        parts = [each for each in chosen if each.source == piece.source and _is_within(each, piece)]
        chosen = [each for each in chosen if each not in parts]
        left -= price - sum(len(each.text) + len(_SEPARATOR) for each in parts)
        opened.add(piece.source)
        had.update((piece.source, a) for a in piece.holds)
        chosen.append(piece)
    return chosen


def _stands(text: str, source: str) -> bool:
    """Whether it is borne out: what is verbatim may, cut out of its surroundings, still read as another anchor."""
    return all(occurs(anchor, source) for anchor in anchors(text))


def _is_within(part: _Piece, whole: _Piece) -> bool:
    return whole.start <= part.start and part.start + len(part.text) <= whole.start + len(whole.text)


def _price(pieces: Iterable[_Piece]) -> int:
    """Characters of a note's lines of these pieces, or a little more."""
    return sum(len(f"[o{line.source}] ") + len(line.text) + 1 for line in _lines(pieces))


def _first_words(observations: Iterable[Observation], left: float) -> list[_Piece]:
    """How observations begin, as far as there is room: for prose, which has no anchors."""
    found = []
    for each in observations:
        row = next((row for row in each.text[:_MAX_TEXT_CHARS].split("\n") if any(map(str.isalpha, row))), "")
        price = len(f"[{each.id}] ") + 1
        text = _cut_at_blank(row.strip(), min(_MAX_LINE_CHARS, int(left) - price))
        if text:
            left -= len(text) + price
            found.append(_Piece(text, each.index, 0, ()))
    return found


def _cut_at_blank(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(0, room)].rpartition(" ")[0].rstrip()
