"""The note that stands for what was taken away: structured, every line with its source, and readable as a thought."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentinfer.compress.memory import observation_id, parse_observation_id

MAX_LINES: Final = 200


@dataclass(frozen=True, slots=True)
class Line:
    """One statement and the observation (its place in the history) that it is from."""

    text: str
    source: int


@dataclass(frozen=True, slots=True)
class Note:
    """What a stretch of memory said. Facts come in the order of their sources.

    `dead_ends`: what was tried and failed. `open_questions` and `next_step` are a model's; empty from the extractive
    compressor, which does not make up sentences.
    """

    facts: tuple[Line, ...] = ()
    dead_ends: tuple[Line, ...] = ()
    open_questions: tuple[Line, ...] = ()
    next_step: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.facts or self.dead_ends or self.open_questions or self.next_step)

    def lines(self) -> tuple[Line, ...]:
        """All lines that have a source."""
        return (*self.facts, *self.dead_ends, *self.open_questions)

    def text(self) -> str:
        """As the agent reads it, among its own thoughts. Empty for an empty note."""
        parts = [
            _section("Seen ([oN] is a result that was taken out)", self.facts),
            _section("Failed", self.dead_ends),
            _section("Open", self.open_questions),
        ]
        if self.next_step:
            parts.append(f"Next: {self.next_step}")
        return "\n".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        def listed(lines: Iterable[Line]) -> list[dict[str, str]]:
            return [{"source": observation_id(line.source), "text": line.text} for line in lines]

        return {
            "facts": listed(self.facts),
            "dead_ends": listed(self.dead_ends),
            "open_questions": listed(self.open_questions),
            "next_step": self.next_step,
        }

    @classmethod
    def from_json(cls, data: object) -> Note:
        """Reads `to_json`, or what a model wrote in its form. Raises ValueError naming the field that is not as it
        should be."""
        if not isinstance(data, Mapping):
            raise ValueError(f"note: got {type(data).__name__}, expected an object")
        unknown = sorted(set(data) - {"facts", "dead_ends", "open_questions", "next_step"})
        if unknown:
            raise ValueError(f"note: unknown field {unknown[0]!r}")
        next_step = data.get("next_step", "")
        if not isinstance(next_step, str):
            raise ValueError(f"note.next_step: got {next_step!r}, expected text")
        return cls(
            facts=_lines(data, "facts"),
            dead_ends=_lines(data, "dead_ends"),
            open_questions=_lines(data, "open_questions"),
            next_step=next_step.strip(),
        )


def note_schema(sources: Iterable[str]) -> dict[str, Any]:
    """JSON schema of a note over the observations of these ids, for a grammar: a source can only be one of them."""
    line = {
        "type": "object",
        "properties": {
            "source": {"type": "string", "enum": list(sources)},
            "text": {"type": "string", "minLength": 1, "maxLength": 300},
        },
        "required": ["source", "text"],
        "additionalProperties": False,
    }
    names = ("facts", "dead_ends", "open_questions")
    return {
        "type": "object",
        "properties": {
            **{name: {"type": "array", "items": line, "maxItems": 12 if name == "facts" else 4} for name in names},
            "next_step": {"type": "string", "maxLength": 200},
        },
        "required": [*names, "next_step"],
        "additionalProperties": False,
    }


def _section(title: str, lines: Iterable[Line]) -> str:
    """Lines under their sources; several of one source stand behind one id."""
    by_source: dict[int, list[str]] = {}
    for line in lines:
        by_source.setdefault(line.source, []).append(line.text)
    if not by_source:
        return ""
    rows = [f"[{observation_id(source)}] {'; '.join(texts)}" for source, texts in sorted(by_source.items())]
    return "\n".join([f"{title}:", *rows])


def _lines(data: Mapping[str, Any], name: str) -> tuple[Line, ...]:
    items = data.get(name, [])
    if not isinstance(items, list) or len(items) > MAX_LINES:
        raise ValueError(f"note.{name}: expected a list of at most {MAX_LINES} lines")
    found = []
    for position, item in enumerate(items):
        text = item.get("text") if isinstance(item, Mapping) else None
        source = item.get("source") if isinstance(item, Mapping) else None
        if not isinstance(text, str) or not isinstance(source, str):
            raise ValueError(f"note.{name}[{position}]: got {item!r}, expected an object with source and text")
        if text.strip():
            found.append(Line(" ".join(text.split()), parse_observation_id(source)))
    return tuple(sorted(found, key=lambda line: line.source))
