"""Whatever a model makes of its sources, nothing that can be checked gets into a note that its source does not say."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from agentinfer.compress.anchors import anchors, find_anchors, occurs
from agentinfer.compress.distiller import Assignment, sources_of
from agentinfer.compress.extractive import ExtractiveDistiller
from agentinfer.compress.fidelity import verified
from agentinfer.compress.memory import Observation
from agentinfer.compress.note import Line, Note

WORDS = st.sampled_from(["the", "file", "has", "failed", "of", "and", "error", "(see)", "it's", "well-known", "版本"])
NAMES = st.from_regex(r"[a-z]{1,4}_[a-z]{1,4}|[A-Z][a-z]{1,3}[A-Z][a-z]{1,3}|[a-c]{1,2}\.[a-c]{1,2}", fullmatch=True)
NUMBERS = st.from_regex(r"-?[0-9]{1,4}(\.[0-9]{1,2}){0,2}|[1-9],[0-9]{3}", fullmatch=True)
PATHS = st.from_regex(
    r"(/|\./|)([a-c]{1,2}/){1,2}[a-c]\.py(:[0-9]{1,2})?|https://[a-c]{1,2}\.org/[a-c]?", fullmatch=True
)
TOKENS = st.one_of(WORDS, NAMES, NUMBERS, PATHS)
TEXTS = st.lists(TOKENS, max_size=12).flatmap(
    lambda tokens: st.lists(
        st.sampled_from([" ", ", ", "\n", "=", ": ", "(", ")"]), min_size=len(tokens), max_size=len(tokens)
    ).map(lambda joints: "".join(token + joint for token, joint in zip(tokens, joints, strict=True)))
)


def is_whole(anchor: str, text: str) -> bool:
    """By brute force: somewhere in the text with no letter, digit or underscore right beside it."""
    for start in range(len(text) - len(anchor) + 1):
        if text[start : start + len(anchor)] != anchor:
            continue
        before, after = text[start - 1 : start], text[start + len(anchor) : start + len(anchor) + 1]
        bounded_before = not re.match(r"\w", anchor) or not re.match(r"\w", before) or before in "版本"
        bounded_after = not re.search(r"\w$", anchor) or not re.match(r"\w", after) or after in "版本"
        if bounded_before and bounded_after:
            return True
    return False


@st.composite
def corrupted(draw: st.DrawFn) -> tuple[dict[int, str], Note]:
    """Sources, and lines that quote them, mix them, name the wrong one or change a character of them."""
    sources = {index: draw(TEXTS) for index in draw(st.sets(st.integers(0, 5), min_size=1, max_size=3))}
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        text = draw(st.sampled_from(sorted(sources.values())) | TEXTS)
        begin = draw(st.integers(0, len(text)))
        text = text[begin : draw(st.integers(begin, len(text)))]
        if text and draw(st.booleans()):
            place = draw(st.integers(0, len(text) - 1))
            text = text[:place] + draw(st.sampled_from("0123456789._-/abX ")) + text[place + 1 :]
        lines.append(Line(text, draw(st.integers(0, 6))))
    split = draw(st.integers(0, len(lines)))
    return sources, Note(facts=tuple(lines[:split]), dead_ends=tuple(lines[split:]), next_step=draw(TEXTS))


@settings(max_examples=150, deadline=None)
@given(corrupted())
def test_every_anchor_of_what_remains_stands_in_its_source(case: tuple[dict[int, str], Note]) -> None:
    sources, note = case
    result = verified(note, sources)
    for line in result.note.lines():
        assert all(is_whole(anchor, sources[line.source]) for anchor in anchors(line.text)), line
    own_ids = {f"o{index}" for index in sources}
    for anchor in anchors(result.note.next_step):
        assert anchor in own_ids or any(is_whole(anchor, source) for source in sources.values())
    # and nothing is added, or lost without a reason
    assert len(result.dropped) + len(result.note.lines()) == len(note.lines()) + (
        bool(note.next_step.strip()) and not result.note.next_step
    )


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(0, 9_999), st.integers(0, 9_999))
def test_a_number_that_is_not_in_the_source_never_passes(source: str, number: int, place: int) -> None:
    digits = {int(found) for found in re.findall(r"\d+", source)}
    if number in digits:
        return
    words = ["it", "took", "these"]
    words.insert(place % 4, str(number))
    assert verified(Note(facts=(Line(" ".join(words), 1),)), {1: source}).note.is_empty


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | TEXTS)
def test_anchors_of_any_text_are_verbatim_in_order_and_apart(text: str) -> None:
    end = 0
    for anchor in find_anchors(text):
        assert anchor.text
        assert anchor.start >= end
        assert text[anchor.start : anchor.start + len(anchor.text)] == anchor.text
        end = anchor.start + len(anchor.text)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(0, 150))
def test_an_extractive_note_keeps_to_budget_and_sources_and_with_room_has_every_name(
    texts: list[str], budget_tokens: int
) -> None:
    observations = tuple(Observation(2 * index, "bash", "", text) for index, text in enumerate(texts))
    tight = Assignment("", "", observations, budget_tokens, 0.3)
    roomy = Assignment("", "", observations, 10_000, 0.3)
    for assignment in (tight, roomy):
        note = ExtractiveDistiller().note(assignment)
        assert len(note.text()) <= assignment.budget_chars
        assert verified(note, sources_of(observations)).dropped == ()
    for text in texts:
        for anchor in find_anchors(text):
            if anchor.kind == "name" and len(anchor.text) >= 2 and occurs(anchor.text, text):
                assert anchor.text in note.text()
