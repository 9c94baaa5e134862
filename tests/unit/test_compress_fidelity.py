"""Anchors of a text, whole-token matching, and which lines of a note its sources bear out."""

from __future__ import annotations

import time

import pytest

from agentinfer.compress.anchors import anchors, find_anchors, occurs
from agentinfer.compress.fidelity import ALL_SOURCES, verified
from agentinfer.compress.note import Line, Note


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The quick brown fox; it's well-known, isn't it? A state-of-the-art idea. Yes/no, and/or.", ()),
        ("I am NOT sure, e.g. here. OK.", ()),
        ("12 of 1,234 at 12.5% is -5, not 0x1f or 1e-8", ("12", "1,234", "12.5", "-5", "0x1f", "1e-8")),
        ("lines 5-10 of 2024-05-06", ("5", "10", "2024-05-06")),
        ("[1,2,3] x=4", ("1", "2", "3", "4")),
        ("snake_case CamelCase HTTPServer __init__ MAX_LEN HTTP", None),
        ("self.fields.Nested numpy.nan v1.2.3 2.20.0 gpt-4 UTF-8", None),
        ("call_abc123 toolu_01Xy deadbeef deadbeef01 9f86d081884c7d65", None),
        ("src/a/b.py:12 ./run.sh ../x/y ~/notes.md /testbed/lib a.py:3:14 C:\\Users\\x.txt", None),
        ("tox.ini foo-bar.py .gitignore someone@example.org", None),
        ("see (https://example.org/a(b)?q=1#x).", ("https://example.org/a(b)?q=1#x",)),
        ("--foo-bar=3 and -v", ("--foo-bar", "3", "-v")),
        ("it raised 'timeout' and `segfault` in parse(), don't file(s)", ("timeout", "segfault", "parse")),
        ("12-    x = 1\n13-def run", ("12", "1", "13")),
        ('"".join(parts)', ()),
        ("<output>words</output> in </testbed/lib>", ("/testbed/lib",)),
        ("of 1,000, or so", ("1,000",)),
        ("版本是2.20.0号,在foo_bar里", ("2.20.0", "foo_bar")),
        ("Größe_x naïve café", ("Größe_x",)),
        ("1249:    def plot", ("1249",)),
    ],
)
def test_anchors_are_what_can_be_checked_and_no_words(text: str, expected: tuple[str, ...] | None) -> None:
    assert anchors(text) == (tuple(text.split()) if expected is None else expected)


def test_anchors_are_verbatim_at_their_place() -> None:
    text = "x.\n(see src/a.py:12, `foo`, parse(), --all; -5 'err' https://a.b/c.) ...5 .git"
    found = list(find_anchors(text))
    assert len(found) >= 8
    assert all(text[each.start :].startswith(each.text) for each in found)


@pytest.mark.parametrize(
    ("anchor", "text", "is_there"),
    [
        ("12", "12", True),
        ("12", "at line 12.", True),
        ("12", "a.py:12:def", True),
        ("12", "123", False),
        ("12", "112", False),
        ("12", "12.5", False),
        ("12", "1.12", False),
        ("12", "x = -12", False),
        ("-12", "x = -12", True),
        ("10", "5-10", True),
        ("12", "12,345", False),
        ("345", "12,345", False),
        ("2", "[1,2,3]", True),
        ("2.20", "2.20.0", False),
        ("12", "x12", False),
        ("foo", "foobar", False),
        ("foo_bar", "self.foo_bar(", True),
        ("foo_bar", "foo_bar_baz", False),
        ("Foo", "foo", False),
        ("b.py", "src/a/b.py", True),
        ("b.py", "src/a/b.pyc", False),
        ("foo.py", "test-foo.py", False),
        ("/testbed/a", "/home/testbed/a", False),
        ("/testbed/a", "cd /testbed/a/b", True),
        ("/testbed/a", "x/testbed/a", False),
        ("a.py:12", "a.py:123", False),
        ("--foo", "use --foo=3", True),
        ("--foo", "use ---foo", False),
        ("-v", "run-v", False),
        ("2.20.0", "版本2.20.0号", True),
        ("https://a.b/c", "https://a.b/cd", False),
        # behind more places where it is a part than are looked at one by one
        ("ab1", "ab1x " * 200 + "ab1", True),
        ("ab1", "ab1x " * 200, False),
    ],
)
def test_an_anchor_occurs_only_as_a_whole(anchor: str, text: str, is_there: bool) -> None:
    assert occurs(anchor, text) is is_there


# Each is long runs that a search which goes back on itself would take minutes or more for.
_HARD = (
    "a",
    "-",
    "--a",
    "/a",
    ".",
    "1,",
    "100,",
    "https://",
    "'a",
    "ab()",
    "a-",
    "a:",
    "1-",
    "\\",
    "a@",
    "2024-01",
    '"a`',
)


@pytest.mark.parametrize("unit", _HARD)
def test_long_runs_of_anything_are_searched_in_linear_time(unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit)) + "!"
        begin = time.process_time()
        for _ in find_anchors(text):
            pass
        return time.process_time() - begin

    seconds(3_000)
    assert seconds(300_000) < 3.0  # a quadratic search takes hours, a linear one 0.1 to 0.3 s


def test_brackets_behind_a_url_are_trimmed_in_linear_time() -> None:
    begin = time.process_time()
    assert anchors("(" * 200_000 + "http://a" + ")" * 200_000) == ("http://a",)
    assert time.process_time() - begin < 5.0


SOURCES = {3: "bash ls\n/testbed/src/schema.py has 628 lines", 7: "bash run\nKeyError: 'name' at schema.py:12"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (Line("schema.py has 628 lines", 3), ""),
        (Line("a long file was seen", 3), ""),
        (Line("schema.py has 629 lines", 3), "'629' is not in o3"),
        (Line("marshalling.py has 628 lines", 3), "'marshalling.py' is not in o3"),
        (Line("schema.py has 628 lines", 7), "'628' is not in o7"),
        (Line("see https://example.org", 3), "'https://example.org' is not in o3"),
        (Line("schema.py has 628 lines", 4), "o4 is not among the sources"),
        (Line("KeyError at schema.py:12", 7), ""),
        (Line("KeyError at schema.py:13", 7), "'schema.py:13' is not in o7"),
        (Line("`missing` was raised", 7), "'missing' is not in o7"),
        (Line("  ", 7), "empty"),
    ],
)
@pytest.mark.parametrize("kind", ["facts", "dead_ends", "open_questions"])
def test_a_line_stays_only_if_its_source_bears_it_out(kind: str, line: Line, why: str) -> None:
    result = verified(Note(**{kind: (line,)}), SOURCES)  # type: ignore[arg-type]
    assert result.dropped == (((line, why),) if why else ())
    assert getattr(result.note, kind) == (() if why else (line,))


def test_a_line_said_twice_of_one_source_is_dropped() -> None:
    note = Note(facts=(Line("a file", 3), Line("A  file", 3), Line("a file", 7)), dead_ends=(Line("a file", 3),))
    result = verified(note, SOURCES)
    assert result.note == Note(facts=(Line("a file", 3), Line("a file", 7)))
    assert [why for _, why in result.dropped] == ["said before", "said before"]


def test_the_next_step_may_speak_of_all_sources_and_their_ids() -> None:
    step = "fix KeyError in /testbed/src/schema.py, see o7"
    assert verified(Note(next_step=step), SOURCES).note.next_step == step
    result = verified(Note(next_step="fix line 13, see o8"), SOURCES)
    assert result.note.is_empty
    assert result.dropped == ((Line("fix line 13, see o8", ALL_SOURCES), "'13' is in none of the sources"),)
