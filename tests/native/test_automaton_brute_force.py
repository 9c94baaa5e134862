"""Both implementations against looking everywhere, on all short strings over small alphabets."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

STREAM = (0, 0, 1, 2, 1, 0, 1, 1, 0, 2, 0, 0, 0)  # repeats, a run, and tokens the smaller alphabet lacks


def build(implementation: Any, documents: tuple[tuple[int, ...], ...], max_match: int) -> Any:
    automaton = implementation.Automaton(max_match)
    for number, document in enumerate(documents):
        if number:
            automaton.start_document()
        automaton.extend(np.array(document, dtype=np.int32))
    return automaton


def check_everything(implementation: Any, brute: Any, max_match: int, alphabet: int) -> None:
    automaton = build(implementation, brute.documents, max_match)
    automaton.check_integrity()
    ends = brute.ends()
    strings_of_states = 0
    for state in range(1, automaton.num_states):
        info = automaton.info(state)
        strings_of_states += info.longest - info.shortest + 1
    assert strings_of_states == len(ends)  # each string of the text in one state, and no state without strings

    states = {(): 0}
    for string, positions in ends.items():
        state = automaton.find(np.array(string, dtype=np.int32))
        assert state is not None
        states[string] = state
        info = automaton.info(state)
        assert info.shortest <= len(string) <= info.longest
        if info.shortest <= max_match + 1:
            assert (info.count, info.latest_end) == (len(positions), positions[-1])
        else:
            assert (info.count, info.latest_end) == (None, None)

    text = brute.text
    assert automaton.tokens.tolist() == text
    for string, state in states.items():
        after = {t: ends[(*string, t)] for t in range(alphabet) if (*string, t) in ends}
        follow_position = max((positions[-1] for positions in after.values()), default=None)
        if follow_position is not None and automaton.info(state).shortest <= max_match:
            expected = sorted(((len(p), p[-1], t, states[(*string, t)]) for t, p in after.items()), reverse=True)
            for limit in (1, alphabet):
                seen = automaton.continuations(state, limit)
                assert [(c.count, c.latest_end, c.token, c.state) for c in seen] == expected[:limit]
            followed_by = text[follow_position : follow_position + 3]
            followed_by = followed_by[: followed_by.index(-1)] if -1 in followed_by else followed_by
            assert automaton.following(state, 3).tolist() == followed_by

    current = brute.documents[-1]
    before = max(
        (n for n in range(1, min(max_match, len(current)) + 1) if len(ends[current[-n:]]) > 1),
        default=0,
    )
    match = automaton.suffix_match()
    assert (match.length, match.state) == (before, states[current[len(current) - before :]])

    cursor = implementation.Cursor(automaton)
    for length in range(1, len(STREAM) + 1):
        match = cursor.advance(np.array(STREAM[length - 1 : length], dtype=np.int32))
        expected_length = max(
            (n for n in range(1, min(max_match, length) + 1) if STREAM[length - n : length] in ends), default=0
        )
        assert (match.length, match.state) == (expected_length, states[STREAM[length - expected_length : length]])


@pytest.mark.parametrize("max_match", [1, 2, 64])
def test_all_binary_strings_up_to_length_8(implementation: Any, brute_force: Any, max_match: int) -> None:
    for length in range(9):
        for string in itertools.product(range(2), repeat=length):
            check_everything(implementation, brute_force((string,)), max_match, alphabet=2)


def test_all_ternary_strings_up_to_length_8_natively(native: Any, brute_force: Any) -> None:
    for length in range(9):
        for string in itertools.product(range(3), repeat=length):
            check_everything(native, brute_force((string,)), 64, alphabet=3)


def test_all_ternary_strings_up_to_length_8_in_the_twin(brute_force: Any) -> None:
    from agentinfer.spec_sam import reference

    # Renaming tokens changes nothing here, so strings that begin with 0 and meet 1 before 2 stand for all others.
    for length in range(9):
        for string in itertools.product(range(3), repeat=length):
            if list(dict.fromkeys(string)) == sorted(set(string)) and (not string or string[0] == 0):
                check_everything(reference, brute_force((string,)), 64, alphabet=3)


@pytest.mark.parametrize("max_match", [1, 64])
def test_all_splits_of_binary_strings_into_documents(implementation: Any, brute_force: Any, max_match: int) -> None:
    """The third letter ends a document: forces both ways in which a later document meets an earlier one's states."""
    for marked in itertools.product(range(3), repeat=7):
        documents: list[tuple[int, ...]] = [()]
        for letter in marked:
            documents = [*documents, ()] if letter == 2 else [*documents[:-1], (*documents[-1], letter)]
        if all(documents):
            check_everything(implementation, brute_force(tuple(documents)), max_match, alphabet=2)


def test_rematch_finds_what_the_automaton_learnt_since(implementation: Any, int32s: Any) -> None:
    automaton = implementation.Automaton(max_match=4)
    automaton.extend(int32s([7, 1, 2]))
    cursor = implementation.Cursor(automaton)
    assert cursor.advance(int32s([9, 5, 1, 2])).length == 2
    automaton.extend(int32s([3, 9, 5, 1, 2, 8]))
    assert cursor.match.length == 2  # true still, though no longer the longest
    assert cursor.rematch().length == 4
    assert cursor.match.state == automaton.find(int32s([9, 5, 1, 2]))
    cursor.reset()
    assert (cursor.match.state, cursor.match.length) == (0, 0)


@pytest.mark.parametrize("known", [[2, 3], [3]], ids=["the longest of the clone", "a shorter one"])
def test_match_survives_the_split_of_its_state(implementation: Any, int32s: Any, known: list[int]) -> None:
    """Forces the clone branch between two steps of a cursor: 2 3 and 3 leave the state they shared with 1 2 3."""
    automaton = implementation.Automaton()
    automaton.extend(int32s([1, 2, 3, 4]))
    cursor = implementation.Cursor(automaton)
    before = cursor.advance(int32s(known))
    automaton.extend(int32s([2, 3, 5]))
    assert automaton.find(int32s(known)) != before.state
    after = cursor.advance(int32s([5]))
    assert (after.state, after.length) == (automaton.find(int32s([*known, 5])), len(known) + 1)


def test_views_stay_readable_while_the_text_grows(implementation: Any, int32s: Any) -> None:
    automaton = implementation.Automaton()
    automaton.extend(int32s([1, 2, 3]))
    view = automaton.tokens
    automaton.extend(int32s(range(100_000)))
    assert view.tolist() == [1, 2, 3]
    del automaton
    assert view.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 5


def test_largest_token_and_many_continuations(implementation: Any, int32s: Any) -> None:
    """Forces the scanned block through all its sizes into the hashed one, and the hashed one to grow."""
    tokens = [2**31 - 1 - 1013 * n for n in range(700)]
    automaton = implementation.Automaton()
    automaton.extend(int32s([each for token in tokens for each in (0, token)] + [0, tokens[3]]))
    state = automaton.find(int32s([0]))
    assert automaton.info(state).count == 701
    best = automaton.continuations(state, 2)
    assert [(c.token, c.count) for c in best] == [(tokens[3], 2), (tokens[-1], 1)]
    assert {c.token for c in automaton.continuations(state, 1000)} == set(tokens)
    automaton.check_integrity()


def test_counting_work_is_bounded_on_a_run(implementation: Any, int32s: Any) -> None:
    """On one token repeated, each link path is as long as the text; counting must visit max_match + 2 states of it."""
    automaton = implementation.Automaton(max_match=8)
    automaton.extend(int32s([5] * 2000))
    assert automaton.num_count_updates <= 2000 * (8 + 2)
    assert automaton.info(automaton.find(int32s([5] * 9))).count == 2000 - 8
    assert automaton.info(automaton.find(int32s([5] * 10))).count is None
    with pytest.raises(ValueError, match="max_match = 8"):
        automaton.continuations(automaton.find(int32s([5] * 9)), 1)
    automaton.check_integrity()
