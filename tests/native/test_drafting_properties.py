"""What every draft is, against looking everywhere: a tree, best first, of tokens that really followed."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drafting_builders import MEMORY, RELATED, Draft, draft, drafting, int32s

STOP = 3


@pytest.fixture(params=["native", "reference"])
def core(request: pytest.FixtureRequest) -> Any:
    return drafting(request.param)


def stream_over(core: Any, sources: list[list[list[int]]], *, max_match: int = 64, stop_tokens: Any = ()) -> Any:
    """A new stream with an own text and further sources of these documents."""
    model = core.DraftModel(list(stop_tokens))
    stream = core.DraftStream(model, core.Automaton(max_match))
    for kind, documents in enumerate(sources, start=RELATED):
        automaton = core.Automaton(max_match)
        for document in documents:
            automaton.extend(int32s(document))
            automaton.start_document()
        stream.add_source(automaton, kind)
    return stream


letters = st.integers(0, 4)
documents = st.lists(st.lists(letters, max_size=20), max_size=3)


@settings(max_examples=150)
@given(
    sources=st.lists(documents, max_size=3),
    pieces=st.lists(st.lists(letters, min_size=1, max_size=15), min_size=1, max_size=4),
    max_match=st.sampled_from([1, 3, 64]),
    worth=st.sampled_from([0.0001, 0.06, 0.4]),
    max_children=st.sampled_from([0, 1, 2]),
)
@pytest.mark.parametrize("name", ["native", "reference"])
def test_every_draft_is_a_tree_of_what_followed(
    name: str,
    sources: list[list[list[int]]],
    pieces: list[list[int]],
    max_match: int,
    worth: float,
    max_children: int,
) -> None:
    core = drafting(name)
    stream = stream_over(core, sources, max_match=max_match, stop_tokens=[STOP])
    limits: dict[str, Any] = {"max_children": max_children, "worth": worth}
    said: list[int] = []
    for piece in pieces:
        said += piece
        [drafted] = draft(core, [stream], [piece], **limits)
        check_tree(drafted, root=said[-1], worth=worth, max_children=max_children)
        followed = {pair for text in [said, *chain.from_iterable(sources)] for pair in pairwise(text)}
        for node in range(1, drafted.width):
            assert (drafted.tokens[drafted.parents[node]], drafted.tokens[node]) in followed
        for max_nodes in (0, 1, 5):  # a smaller draft is the best part of the larger one
            [smaller] = draft(core, [stream], [[]], max_nodes=max_nodes, **limits)
            width = min(max_nodes + 1, drafted.width)
            cut = Draft(drafted.tokens[:width], drafted.parents[:width], drafted.probability[:width])
            assert smaller == cut


def check_tree(drafted: Draft, *, root: int, worth: float, max_children: int) -> None:
    assert (drafted.tokens[0], drafted.parents[0], drafted.probability[0]) == (root, -1, 1.0)
    assert all(0 <= parent < node for node, parent in enumerate(drafted.parents) if node > 0)
    assert all(probability >= np.float32(worth) for probability in drafted.probability)
    assert drafted.probability == sorted(drafted.probability, reverse=True)
    for node in range(drafted.width):
        children = [drafted.tokens[child] for child in drafted.children(node)]
        assert len(set(children)) == len(children)
        assert max_children == 0 or len(children) <= max_children
        assert node == 0 or drafted.tokens[node] != STOP or children == []
        assert sum(drafted.probability[child] for child in drafted.children(node)) < 2  # each alone is at most 1


def test_one_child_a_node_makes_a_chain(core: Any) -> None:
    stream = stream_over(core, [[[1, 2, 4, 1, 2, 3, 1, 2, 4, 4, 1, 2]]])
    [tree] = draft(core, [stream], [[1, 2]], worth=0.001)
    [line] = draft(core, [stream], [[]], worth=0.001, max_children=1)
    assert line.parents == list(range(-1, line.width - 1))
    assert line.width > 3
    assert tree.parents != list(range(-1, tree.width - 1))


def test_a_draft_of_no_nodes_is_the_root_and_the_next_one_still_learns(core: Any) -> None:
    stream = stream_over(core, [[[1, 2, 3, 4, 5]]])
    assert draft(core, [stream], [[]], max_nodes=0) == [Draft([0], [-1], [np.float32(1)])]  # no token came yet
    assert draft(core, [stream], [[1, 2]], max_nodes=0) == [Draft([2], [-1], [np.float32(1)])]
    assert draft(core, [stream], [[3]])[0].path(1) == [4]


def test_nothing_follows_a_stop_token_but_a_turn_may_begin_with_one(core: Any) -> None:
    stream = stream_over(core, [[[1, 2, STOP, 4, 5]]], stop_tokens=[STOP])
    [before] = draft(core, [stream], [[1]], worth=0.001)
    assert before.tokens == [1, 2, STOP]
    [after] = draft(core, [stream], [[2, STOP]], worth=0.001)
    assert after.tokens[:2] == [STOP, 4]


@pytest.mark.parametrize(("degree", "is_asked"), [(32, True), (33, False)])
def test_a_match_with_very_many_continuations_says_nothing(core: Any, degree: int, is_asked: bool) -> None:
    stream = stream_over(core, [[[1, 100 + number] for number in range(degree)]])
    [drafted] = draft(core, [stream], [[1]], worth=1e-6, max_nodes=64)
    assert (drafted.width > 1) is is_asked


def test_six_matches_of_a_source_are_asked(core: Any) -> None:
    """Eight suffixes of the stream recur, each with one continuation more than the next longer one."""
    said = [1, 2, 3, 4, 5, 6, 7, 8]
    stream = stream_over(core, [[[200 + length, *said[-length:], 100 + length] for length in range(1, 9)]])
    [drafted] = draft(core, [stream], [said], worth=1e-9, max_nodes=64)
    assert {drafted.tokens[child] for child in drafted.children(0)} == {103, 104, 105, 106, 107, 108}


@pytest.mark.parametrize(("length", "is_matched"), [(64, True), (65, False)])
def test_a_source_that_comes_later_is_matched_from_the_last_64_tokens(core: Any, length: int, is_matched: bool) -> None:
    """7 followed once, after all that was said; 8 nine times, after all of it but the first token."""
    said = list(range(200, 200 + length))
    stream = core.DraftStream(core.DraftModel(), core.Automaton(128))
    stream.seek(int32s(said))
    source = core.Automaton(128)
    source.extend(int32s([*said, 7]))
    source.start_document()
    source.extend(int32s([*said[1:], 8] * 9))
    stream.add_source(source, MEMORY)
    [drafted] = draft(core, [stream], [[]], worth=0.001)
    best = drafted.path(1)
    assert (best == [7]) is is_matched


def test_credits_name_the_source_and_the_place_of_what_it_gave(core: Any) -> None:
    stream = stream_over(core, [[[1, 2, 3]], [[7, 7, 5, 6]]])
    draft(core, [stream], [[5]])
    draft(core, [stream], [[6]])
    draft(core, [stream], [[1]])
    draft(core, [stream], [[2, 3]])
    sources, positions = stream.take_credits()
    assert list(zip(sources.tolist(), positions.tolist(), strict=True)) == [(2, 3), (1, 1), (1, 2)]
    assert [side.tolist() for side in stream.take_credits()] == [[], []]


def probability_of(drafted: Draft, token: int) -> float:
    found = [drafted.probability[child] for child in drafted.children(0) if drafted.tokens[child] == token]
    return float(found[0]) if found else 0.0


@pytest.mark.parametrize("right_kind", [RELATED, MEMORY])
def test_a_source_that_is_always_right_comes_to_beat_one_that_is_always_wrong(core: Any, right_kind: int) -> None:
    """Both know what followed each token, once; nothing in the own text repeats. The start is even."""
    true = list(range(1000, 1301))
    false = [[token, 5000 + token] for token in true]
    stream = stream_over(core, [[true], false] if right_kind == RELATED else [false, [true]])
    shares = []
    for now, coming in pairwise(true):
        [drafted] = draft(core, [stream], [[now]], worth=0.0001)
        shares.append((probability_of(drafted, coming), probability_of(drafted, 5000 + now)))
    assert shares[0][0] == shares[0][1] > 0
    right, wrong = shares[-1]
    assert right > 0.8
    assert wrong < 0.1
    assert right > shares[150][0] > shares[0][0]  # on the way


def test_expected_acceptance_is_what_is_accepted() -> None:
    """A chain of 12 tokens whose next one is known by chance: 0.7 to the first successor, 0.2 and 0.1 to others.

    8000 steps after 2000 to learn. Some 2.7 tokens of a step are accepted, with a standard deviation under 1.6, so that
    mean is known to 0.018. The bound is 6% of it: a systematic error of 10% passes with a probability under 1e-6.
    """
    core = drafting("native")
    rng = np.random.default_rng(20261123)
    successors = np.stack([rng.permutation(12)[:3] for _ in range(12)])
    text = [0]
    picks = rng.choice(3, size=40_000, p=[0.7, 0.2, 0.1])
    for pick in picks:
        text.append(int(successors[text[-1], pick]))
    stream = stream_over(core, [])
    expected, observed, predicted = [], [], []
    at = 0
    [drafted] = draft(core, [stream], [text[:1]])
    for step in range(10_000):
        count = drafted.accepted(text[at + 1 : at + 40])
        if step >= 2000:
            expected.append(float(sum(drafted.probability[1:])))
            observed.append(count)
            coming = text[at + 1 : at + 40]
            for node in range(1, drafted.width):
                path = drafted.path(node)
                predicted.append((float(drafted.probability[node]), coming[: len(path)] == path))
        new = text[at + 1 : at + count + 2]
        at += len(new)
        [drafted] = draft(core, [stream], [new])
    error = np.std(observed) / np.sqrt(len(observed))
    assert np.std(observed) < 1.6
    assert abs(np.mean(expected) - np.mean(observed)) < 3 * error + 0.04 * np.mean(observed)
    chances, came = (np.array(column, dtype=float) for column in zip(*predicted, strict=True))
    for low in np.arange(0.1, 0.8, 0.1):  # a node said to be accepted so often is
        inside = (chances >= low) & (chances < low + 0.1)
        if inside.sum() >= 500:
            assert abs(chances[inside].mean() - came[inside].mean()) < 0.06
