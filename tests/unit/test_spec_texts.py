"""A session's text follows its prompts, cut short or not; the texts of sessions leave in the order of their use."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentinfer.spec_sam.texts import OVERLAP, SessionText, SessionTexts, common_prefix
from tests.drafting_builders import InlineBuilder, int32s


def follow(text: SessionText, prompt: list[int], num_chunks: int | None = None) -> None:
    for chunk in islice(text.chunks(int32s(prompt)), num_chunks):
        chunk()


tokens = st.lists(st.integers(0, 2), max_size=8)


@given(tokens, tokens)
def test_common_prefix_is_where_the_first_difference_is(left: list[int], right: list[int]) -> None:
    shared = common_prefix(int32s(left), int32s(right))
    assert left[:shared] == right[:shared]
    assert shared in (len(left), len(right)) or left[shared] != right[shared]


def test_a_prompt_that_goes_on_adds_what_is_new() -> None:
    text = SessionText(64)
    follow(text, [1, 2, 3])
    text.automaton.extend(int32s([4]))
    assert text.finish([int32s([5]), int32s([6, 7])]).tolist() == [4, 5, 6, 7]
    follow(text, [1, 2, 3, 4, 5, 6, 7, 8])
    assert text.automaton.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (text.num_shared, text.num_turns) == (7, 1)
    assert text.finish([]).tolist() == []


@pytest.mark.parametrize("shared", [0, 10, OVERLAP, 100])
def test_an_edit_starts_a_document_with_an_overlap(shared: int) -> None:
    text = SessionText(64)
    old = list(range(120))
    follow(text, old)
    edited = [*old[:shared], 500, 501]
    follow(text, edited)
    overlap = old[max(0, shared - OVERLAP) : shared]
    assert text.automaton.tokens.tolist() == [*old, -1, *overlap, 500, 501]
    assert text.known[: text.length].tolist() == edited


def test_a_prompt_that_is_shorter_than_the_text_is_an_edit() -> None:
    text = SessionText(64)
    follow(text, [1, 2, 3, 4])
    follow(text, [1, 2])
    assert text.automaton.tokens.tolist() == [1, 2, 3, 4, -1, 1, 2]


@pytest.mark.parametrize("num_chunks", [0, 1, 2, 3])
def test_indexing_cut_short_goes_on_where_it_stopped(num_chunks: int) -> None:
    """Chunks hold 1024 tokens; the first only finds out what is shared."""
    prompt = [number % 1000 for number in range(10_000)]
    text = SessionText(64)
    follow(text, prompt, num_chunks)
    assert text.length == max(0, num_chunks - 1) * 1024
    follow(text, [*prompt, 1, 2])
    assert text.automaton.tokens.tolist() == [*prompt, 1, 2]
    text.automaton.check_integrity()


def ended() -> Any:
    return InlineBuilder().submit("key", ())


def test_one_reader_has_a_text_and_another_gets_its_own() -> None:
    texts = SessionTexts(2**20, 64)
    first = texts.borrow("s", "r1")
    second = texts.borrow("s", "r2")
    assert first is texts.peek("s") is not second
    job = ended()
    job.run_chunk()
    texts.give_back("s", second, job)
    assert texts.peek("s") is first
    texts.give_back("s", first, job)
    assert texts.borrow("s", "r3") is first
    assert texts.borrow(None, "r4") is not texts.borrow(None, "r5")
    assert len(texts) == 1


def test_the_least_recently_used_idle_text_leaves_first() -> None:
    texts = SessionTexts(100, 64)
    jobs = {name: ended() for name in "abcd"}
    held = {name: texts.borrow(name, name) for name in "abcd"}
    for name in "cab":  # d is still read
        held[name].num_bytes = 40
        jobs[name].run_chunk()
        texts.give_back(name, held[name], jobs[name])
        texts.check_integrity()
    assert [texts.peek(name) is not None for name in "abcd"] == [True, True, False, True]
    assert texts.num_bytes == 80
    held["d"].num_bytes = 1000
    jobs["d"].run_chunk()
    texts.give_back("d", held["d"], jobs["d"])  # alone too large: nothing else can leave
    assert [texts.peek(name) is not None for name in "abcd"] == [False, False, False, False]
    assert texts.num_bytes == 0


def test_a_text_is_counted_again_until_its_last_job_has_ended() -> None:
    """A turn is finished by the indexing thread after its request has left."""
    texts = SessionTexts(100, 64)
    slow, quick = ended(), ended()
    quick.run_chunk()
    late, other = texts.borrow("late", "r1"), texts.borrow("other", "r2")
    texts.give_back("late", late, slow)
    late.num_bytes = 30
    texts.give_back("other", other, quick)
    assert texts.num_bytes == 30
    late.num_bytes = 70
    slow.run_chunk()
    texts.give_back("other", texts.borrow("other", "r3"), quick)
    assert texts.num_bytes == 70
    texts.check_integrity()
