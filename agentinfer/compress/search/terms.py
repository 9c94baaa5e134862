"""The terms of a text that ranking compares: words where a script parts them, pairs of characters where it does not."""

from __future__ import annotations

import re
import unicodedata

# Han with its extensions, the Japanese kana and Hangul: written without spaces, or with spaces that do not part words.
_CJK = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3005\u3006"  # Han
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\uac00-\ud7af\u1100-\u11ff"  # Hangul
)
_RUNS = re.compile(f"(?P<cjk>[{_CJK}]+)|(?P<word>[^\\W_{_CJK}]+)")
_CJK_CHARACTER = re.compile(f"[{_CJK}]")


def terms(text: str) -> list[str]:
    """The terms of `text` in order, without regard to case or width.

    A run of Chinese, Japanese or Korean gives its pairs of neighbouring characters, the usual index for text without
    word boundaries (Kwok, SIGIR 1997), and a run of one character that character. Underscores part words, so
    that `read_file` meets "read file".
    """
    found: list[str] = []
    for run in _RUNS.finditer(unicodedata.normalize("NFKC", text).casefold()):
        characters = run.group()
        if run.lastgroup == "word" or len(characters) == 1:
            found.append(characters)
        else:
            found.extend(characters[start : start + 2] for start in range(len(characters) - 1))
    return found


def count_cjk(text: str) -> int:
    """How many characters of `text` are Chinese, Japanese or Korean."""
    return len(_CJK_CHARACTER.findall(text))
