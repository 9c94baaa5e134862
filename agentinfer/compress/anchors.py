"""What of a text can be checked word for word: numbers, identifiers, paths, URLs, flags, quoted names. Words are none.

A note is held to these (paper, section 3.2, says only that a small model writes it): a model may put things in its own
words, yet a wrong number or a path that never was sends an agent astray.

    text --one regular expression--> runs without blanks --judged one by one--> anchors, verbatim parts of the text
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

Kind = Literal["url", "path", "number", "name", "flag", "quoted"]

# Chinese, Japanese and Korean are written without blanks, so their letters bound a name instead of going on with it.
_UNSPACED: Final = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
_WORD: Final = rf"[^\W{_UNSPACED}]"

# Each branch ends where its class of characters does and none nests a repetition, so the search is linear in the text.
_RUNS: Final = re.compile(
    rf"(?P<url>\b(?:https?|ftp|file|wss?|ssh|git|s3|gs)://[^\s<>\"'`|\\^{{}}\[\]{_UNSPACED}]+)"
    rf"|(?<!{_WORD})'(?P<single>{_WORD}{{2,80}})'(?!{_WORD})"
    rf"|[\"`](?P<quoted>{_WORD}{{2,80}})[\"`]"
    rf"|(?P<flag>(?<![\w./\\-])-{{1,2}}[A-Za-z]{_WORD}*(?:-{_WORD}+)*)"
    r"|(?P<number>(?<![\w.,])[+-]?\d{1,3}(?:,\d{3}){1,4}(?:\.\d+)?(?!\w|,\d))"
    rf"|(?P<call>(?<!{_WORD}){_WORD}{{2,80}})(?=\(\))"
    rf"|(?P<run>(?:{_WORD}|[./\\:~@+-])+)"
)
_NUMBER: Final = re.compile(r"(?<!\w)[+-]?\d+(?:,\d{3}(?!\d))*(?:\.\d+)*(?!\w)")
_DATE: Final = re.compile(r"\d{4}-\d{2}(?:-\d{2})?(?:[T:.+Z\d-]*)")
_CAMEL: Final = re.compile(r"[a-z\d][A-Z]|[A-Z]{2}[a-z]")
_DOTTED: Final = re.compile(rf"{_WORD}+(?:\.{_WORD}+)+")
_HEX: Final = re.compile(r"[0-9a-f]{8,64}|[0-9A-F]{8,64}")
_WHERE: Final = re.compile(r"(?::\d+){1,2}$")
_WORD_CHAR: Final = re.compile(_WORD)
_THREE_DIGITS: Final = re.compile(r"\d{3}(?!\d)")
# Places where an anchor stands only as a part, after which one search is faster than looking at each.
_MAX_MISSES: Final = 64
_WINDOWS: Final = re.compile(r"[A-Za-z]:[\\/]")
# Words in capitals or with a stroke that English has anyway.
_SHOUTED: Final = frozenset(
    ("OK", "NO", "NOT", "AND", "OR", "ALL", "ANY", "NB", "PS", "TODO", "NOTE", "AM", "PM", "US")
)
_ABBREVIATED: Final = frozenset(("e.g", "i.e", "a.m", "p.m", "w.r.t", "a.k.a"))
_STROKED: Final = frozenset(
    [
        "and/or",
        "either/or",
        "he/she",
        "his/her",
        "yes/no",
        "true/false",
        "input/output",
        "read/write",
        "on/off",
        "n/a",
        "w/o",
        "c/o",
        "before/after",
    ]
)


@dataclass(frozen=True, slots=True)
class Anchor:
    """`text` is at [start, start + len(text)) of what was searched."""

    text: str
    start: int
    kind: Kind


def find_anchors(text: str) -> Iterator[Anchor]:
    """All anchors of a text in their order, each occurrence."""
    for match in _RUNS.finditer(text):
        kind = match.lastgroup
        assert kind is not None
        start = match.start(kind)
        found = match[kind]
        if kind == "run":
            for offset, part, part_kind in _judged(found):
                is_method = part.startswith(".") and text.startswith("(", start + offset + len(part))
                is_tag = (
                    part.startswith("/") and "/" not in part[1:] and text[start + offset - 1 : start + offset] == "<"
                )
                if not is_method and not is_tag:  # "".join( is no file, nor is </output> a folder
                    yield Anchor(part, start + offset, part_kind)
        elif kind == "url":
            yield Anchor(_trimmed_url(found), start, "url")
        elif kind == "flag":
            yield Anchor(found, start, "flag")
        elif kind == "call":
            yield Anchor(found, start, "name")
        elif kind == "number":
            yield Anchor(found, start, "number")
        else:
            yield Anchor(found, start, "quoted")


def anchors(text: str) -> tuple[str, ...]:
    """The different anchors of a text, in the order of their first occurrence."""
    return tuple(dict.fromkeys(each.text for each in find_anchors(text)))


def occurs(anchor: str, text: str) -> bool:
    """Whether `anchor` stands in `text` as a whole: bounded by what is no letter, digit or underscore, case and all.

    12 is not in 123, 12.5 or -12; a name may be part of a dotted one, a path the end or the beginning of a longer one.
    """
    before, after = _bounds(anchor)
    start = text.find(anchor)
    for _ in range(_MAX_MISSES):
        if start < 0:
            return False
        if before.match(text, start) and after.match(text, start + len(anchor)):
            return True
        start = text.find(anchor, start + 1)
    return re.compile(before.pattern + re.escape(anchor) + after.pattern).search(text, start) is not None


def is_borne_out(text: str, source: str) -> bool:
    """Whether each anchor of `text` stands in `source`: what was cut out of it may still read as another anchor."""
    return all(occurs(anchor, source) for anchor in anchors(text))


def _bounds(anchor: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What must hold right before and right behind an anchor that stands as a whole; both match without a character."""
    before = f"(?<!{_WORD})" if _WORD_CHAR.match(anchor) else ""
    after = f"(?!{_WORD})" if _WORD_CHAR.match(anchor[-1:]) else ""
    if _NUMBER.fullmatch(anchor):
        if anchor[0].isdigit():  # else it would be found in a negative number, or behind a decimal point
            before += r"(?<!\d\.)(?<![\s=(\[:]-)(?<!^-)(?<![\s=(\[:]\.)(?<!^\.)"
            before += r"(?<!\d,)" if _THREE_DIGITS.match(anchor) else ""
        after += r"(?!\.\d|,\d{3}(?!\d))"
    elif anchor.startswith(("/", "\\", ".", "~", "-", "+", ":")):
        before = r"(?<![\w.~/\\-])" if anchor[0] in "/\\.~" else r"(?<![\w-])"
    else:
        before += rf"(?<!{_WORD}-)"
    return _compiled(before), _compiled(after)


_compiled = lru_cache(maxsize=64)(re.compile)


@lru_cache(maxsize=32_768)
def _judged(run: str) -> tuple[tuple[int, str, Kind], ...]:
    """The anchors in a run of word characters and ``./\\:~@+-``, each with its place."""
    begin = _lead(run)
    text = run[begin:].rstrip(".:/\\+-~@")
    if not text:
        return ()
    if "/" in text or "\\" in text:
        return _path(text, begin)
    if ":" in text:
        where = _WHERE.search(text)
        if where is not None and _DOTTED.fullmatch(text[: where.start()]) and not text[0].isdigit():
            return ((begin, text, "path"),)
        return _split(text, begin, ":")
    if "@" in text and "." in text:
        return ((begin, text, "name"),)
    if _NUMBER.fullmatch(text):
        return ((begin, text, "number"),)
    if _DATE.fullmatch(text):
        return ((begin, text, "number"),)
    for joint in "-+@~":
        if joint in text and not _is_compound(text):
            return _split(text, begin, joint)
    return ((begin, text, "name"),) if _is_name(text) else ()


def _lead(run: str) -> int:
    """How much of a run's beginning is punctuation: none before ``./a``, ``../a``, ``.git`` and ``-5``."""
    rest = run.lstrip(":+@-.")
    begin = len(run) - len(rest)
    if rest.startswith(("/", "\\")) and run[:begin].endswith("."):
        return begin - (2 if run[:begin].endswith("..") else 1)
    if begin and run[begin - 1] == "." and rest[:1].isalpha() and (begin == 1 or run[begin - 2] not in "."):
        return begin - 1
    if begin and run[begin - 1] in "+-" and rest[:1].isdigit() and begin == 1:
        return begin - 1
    return begin


def _split(text: str, begin: int, joint: str) -> tuple[tuple[int, str, Kind], ...]:
    found: list[tuple[int, str, Kind]] = []
    for part in text.split(joint):
        found += [(begin + offset, each, kind) for offset, each, kind in _judged(part)] if part else []
        begin += len(part) + len(joint)
    return tuple(found)


def _path(text: str, begin: int) -> tuple[tuple[int, str, Kind], ...]:
    if text.lower() in _STROKED or not any(char.isalnum() for char in text):
        return ()
    if ":" in text and not _WINDOWS.match(text):
        where = _WHERE.search(text)
        if where is None or ":" in text[: where.start()]:
            return _split(text, begin, ":")
    return ((begin, text, "path"),)


def _is_compound(text: str) -> bool:
    """Joined by hyphens, yet one name: ``gpt-4``, ``foo-bar.py``, ``2.0-beta``; not ``13-def`` of grep's."""
    if text.partition("-")[0].isdigit():
        return False
    has_digit = any(char.isdigit() for char in text)
    has_letter = any(char.isalpha() for char in text)
    return has_letter and (has_digit or "." in text.strip(".") or "_" in text)


def _is_name(text: str) -> bool:
    if any(char.isdigit() for char in text):
        return True
    if "_" in text:
        return any(char.isalnum() for char in text)
    if text.isupper() and len(text) >= 2 and text.isascii():
        return text not in _SHOUTED
    if "." in text:
        return text.lower() not in _ABBREVIATED
    return _CAMEL.search(text) is not None or _HEX.fullmatch(text) is not None


def _trimmed_url(url: str) -> str:
    """Without what ends the sentence, and without a bracket that was opened before it."""
    trimmed = url.rstrip(".,;:!?*")
    surplus = trimmed.count(")") - trimmed.count("(")
    end = len(trimmed)
    while surplus > 0 and trimmed[end - 1] in ").,;:!?*":
        surplus -= trimmed[end - 1] == ")"
        end -= 1
    return trimmed[:end].rstrip(".,;:!?*")
