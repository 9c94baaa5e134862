"""The check's regexes in the engine's default grammar backend allow what they allow in Python."""

from __future__ import annotations

import re

import pytest

from agentinfer.collab_lang.progress import BLOCK_REGEX, VALUE_REGEX

pytestmark = pytest.mark.sglang
_FRAME = "===PROGRESS===\n<reason> {} </reason>\n<value>{}</value>\n===END_PROGRESS==="


def test_the_engines_grammar_backend_agrees_on_what_the_regexes_allow() -> None:
    xgrammar = pytest.importorskip("xgrammar")
    from xgrammar.testing import _is_grammar_accept_string

    block = xgrammar.Grammar.from_regex(BLOCK_REGEX)
    value = xgrammar.Grammar.from_regex(VALUE_REGEX)
    reason = " ".join(f"word{place}," for place in range(12))
    said = {
        _FRAME.format(reason, "TRUE"): True,
        _FRAME.format(reason, "FALSE"): True,
        _FRAME.format("ünïcödé " * 9 + "日本語", "FALSE"): True,
        _FRAME.format(reason, "MAYBE"): False,
        _FRAME.format("too short", "TRUE"): False,
        _FRAME.format(reason + " " + "x" * 25, "TRUE"): False,
        _FRAME.format(reason + " <value>", "TRUE"): False,
        _FRAME.format(reason, "TRUE") + "\n": False,
    }
    for text, is_allowed in said.items():
        assert _is_grammar_accept_string(block, text) == is_allowed == bool(re.fullmatch(BLOCK_REGEX, text)), text
    for text in ("TRUE", "FALSE", "true", "", "TRUE "):
        assert _is_grammar_accept_string(value, text) == bool(re.fullmatch(VALUE_REGEX, text)), text
