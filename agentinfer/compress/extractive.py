"""Notes without a model: out of each observation, word for word, what later turns most likely need.

The baseline and the fallback of the model that the paper has write its notes (section 3.2). A note is bought as one
buys under a budget: each piece of an observation (an anchor of `agentinfer.compress.anchors`, or a line around several)
has a value, the expected number of its anchors that a later turn will use, and a price, its characters; the pieces of
most value for their price go in first, whichever observation they are from. What the agent itself wrote or was asked
stays in its context anyway and is worth nothing here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentinfer.compress.anchor_values import MAX_TEXT_CHARS, anchor_values
from agentinfer.compress.anchors import find_anchors, is_borne_out
from agentinfer.compress.distiller import Assignment, sources_of
from agentinfer.compress.failures import cut_at_blank, fitting_failures
from agentinfer.compress.fidelity import verified
from agentinfer.compress.memory import Observation
from agentinfer.compress.note import Line, Note

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


class ExtractiveDistiller:
    """Makes notes of verbatim pieces; the same assignment gives the same note. Holds no state."""

    async def distil(self, assignment: Assignment) -> Note:
        return self.note(assignment)

    def note(self, assignment: Assignment) -> Note:
        """At most `assignment.budget_chars` of text; empty where not one piece fits."""
        sources = sources_of(assignment.observations)
        failures = fitting_failures(assignment, sources)
        values = anchor_values(assignment, failures)
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


def _pieces(observations: Sequence[Observation], values: Mapping[tuple[int, str], float]) -> list[_Piece]:
    """Each anchor of value that says something by itself, and each line that has one."""
    pieces: list[_Piece] = []
    for each in observations:
        start = 0
        for row in each.text[:MAX_TEXT_CHARS].split("\n"):
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
        if not is_borne_out(piece.text, sources[piece.source]):
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


def _is_within(part: _Piece, whole: _Piece) -> bool:
    return whole.start <= part.start and part.start + len(part.text) <= whole.start + len(whole.text)


def _price(pieces: Iterable[_Piece]) -> int:
    """Characters of a note's lines of these pieces, or a little more."""
    return sum(len(f"[o{line.source}] ") + len(line.text) + 1 for line in _lines(pieces))


def _first_words(observations: Iterable[Observation], left: float) -> list[_Piece]:
    """How observations begin, as far as there is room: for prose, which has no anchors."""
    found = []
    for each in observations:
        row = next((row for row in each.text[:MAX_TEXT_CHARS].split("\n") if any(map(str.isalpha, row))), "")
        price = len(f"[{each.id}] ") + 1
        text = cut_at_blank(row.strip(), min(_MAX_LINE_CHARS, int(left) - price))
        if text:
            left -= len(text) + price
            found.append(_Piece(text, each.index, 0, ()))
    return found
