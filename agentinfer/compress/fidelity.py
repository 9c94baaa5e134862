"""Nothing invented: a note's line stays only if all that can be checked in it stands in the observation it names.

The paper (section 3.2) trusts what the small model writes. Here each line names its source, and a line with a number,
identifier, path or URL that this source has not is dropped, not mended. What is guaranteed is that and no more: a
sentence of ordinary words is not checked, and a number may be right and yet be told of the wrong thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from agentinfer.compress.anchors import anchors, occurs
from agentinfer.compress.memory import observation_id
from agentinfer.compress.note import Line, Note

# `Line.source` of a dropped `next_step`, which has no source of its own.
ALL_SOURCES: Final = -1


@dataclass(frozen=True, slots=True)
class Verified:
    """`note` is what remains; `dropped` says of each line that does not, in the note's order, why."""

    note: Note
    dropped: tuple[tuple[Line, str], ...]


def verified(note: Note, sources: Mapping[int, str]) -> Verified:
    """`note` without the lines that its `sources` (text by the place of the observation) do not bear out.

    The next step may speak of all sources, and of the ids of observations. A line that says again what one before it
    of the same source says is dropped too.
    """
    check = _Check(sources)
    facts = check.kept(note.facts)
    dead_ends = check.kept(note.dead_ends)
    open_questions = check.kept(note.open_questions)
    next_step = " ".join(note.next_step.split())
    why = check.fault_of_step(next_step)
    if why:
        check.dropped.append((Line(next_step, ALL_SOURCES), why))
    return Verified(Note(facts, dead_ends, open_questions, "" if why else next_step), tuple(check.dropped))


class _Check:
    def __init__(self, sources: Mapping[int, str]) -> None:
        self._sources = sources
        self._seen: set[tuple[int, str]] = set()
        self.dropped: list[tuple[Line, str]] = []

    def kept(self, lines: Iterable[Line]) -> tuple[Line, ...]:
        found = []
        for line in lines:
            why = self._fault(line)
            if why:
                self.dropped.append((line, why))
            else:
                found.append(line)
        return tuple(found)

    def _fault(self, line: Line) -> str:
        source = self._sources.get(line.source)
        if source is None:
            return f"{observation_id(line.source)} is not among the sources"
        words = " ".join(line.text.split()).casefold()
        if not words:
            return "empty"
        if (line.source, words) in self._seen:
            return "said before"
        for anchor in anchors(line.text):
            if not occurs(anchor, source):
                return f"{anchor!r} is not in {observation_id(line.source)}"
        self._seen.add((line.source, words))
        return ""

    def fault_of_step(self, text: str) -> str:
        own_ids = {observation_id(index) for index in self._sources}
        for anchor in anchors(text):
            if anchor not in own_ids and not any(occurs(anchor, source) for source in self._sources.values()):
                return f"{anchor!r} is in none of the sources"
        return ""
