"""The compiled automaton in lockstep with its Python twin: state numbers, links, counts, matches, after every call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentinfer.spec_sam import reference

native = pytest.importorskip("agentinfer.spec_sam._core", reason="the compiled core is not built: pip install -e .")

# Few letters force splits and long link paths; a run or a copy of earlier text forces what agents do: repeating.
letters = st.integers(0, 3) | st.sampled_from([7, 2**31 - 1])
pieces = (
    st.lists(letters, max_size=12)
    | st.tuples(letters, st.integers(1, 40)).map(lambda run: [run[0]] * run[1])
    | st.tuples(st.lists(letters, min_size=1, max_size=5), st.integers(1, 12)).map(lambda loop: loop[0] * loop[1])
)


def int32s(values: list[int]) -> Any:
    return np.array(values, dtype=np.int32)


def facts(automaton: Any) -> list[tuple[Any, ...]]:
    rows = [
        (automaton.num_tokens, automaton.num_documents, automaton.num_edges, automaton.num_count_updates),
        tuple(automaton.tokens.tolist()),
        match_of(automaton.suffix_match()),
    ]
    for state in range(automaton.num_states):
        info = automaton.info(state)
        rows.append((info.shortest, info.longest, info.link, info.count, info.latest_end))
        rows.append(tuple(automaton.following(state, 4).tolist()))
        if info.shortest <= automaton.max_match:
            best = automaton.continuations(state, 3)
            rows.append(tuple((c.token, c.state, c.count, c.latest_end) for c in best))
    return rows


def match_of(match: Any) -> tuple[int, int]:
    return match.state, match.length


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.none() | pieces, max_size=12), max_match=st.sampled_from([1, 2, 5, 64]), stream=pieces)
def test_native_equals_twin_after_each_extend(steps: list[list[int] | None], max_match: int, stream: list[int]) -> None:
    """None starts a document."""
    twin, core = reference.Automaton(max_match), native.Automaton(max_match)
    cursors = reference.Cursor(twin), native.Cursor(core)
    for step in steps:
        for automaton in (twin, core):
            automaton.start_document() if step is None else automaton.extend(int32s(step))
            automaton.check_integrity()
        assert facts(core) == facts(twin)
        for token in stream:
            matches = [match_of(cursor.advance(int32s([token]))) for cursor in cursors]
            assert matches[0] == matches[1]
        assert match_of(cursors[0].rematch()) == match_of(cursors[1].rematch())


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), alphabet=st.sampled_from([2, 3, 30]))
def test_native_equals_twin_on_long_random_text(seed: int, alphabet: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, alphabet, 3000, dtype=np.int32)
    tokens[2000:2900] = tokens[50:950]  # a long repeat, so strings of more than max_match + 1 tokens recur
    twin, core = reference.Automaton(16), native.Automaton(16)
    for first in range(0, 3000, 1000):
        for automaton in (twin, core):
            automaton.extend(tokens[first : first + 1000])
            automaton.check_integrity()
    assert facts(core) == facts(twin)


class AutomataMachine(RuleBasedStateMachine):
    """Several automata and cursors, driven through the batch calls and singly; the twin is the model."""

    @initialize(max_match=st.sampled_from([1, 3, 64]))
    def start(self, max_match: int) -> None:
        self.twins = [reference.Automaton(max_match) for _ in range(3)]
        self.cores = [native.Automaton(max_match) for _ in range(3)]
        self.twin_cursors: list[Any] = []
        self.core_cursors: list[Any] = []

    @rule(rows=st.lists(pieces, min_size=3, max_size=3))
    def extend_all(self, rows: list[list[int]]) -> None:
        tokens = int32s([token for row in rows for token in row])
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        reference.extend_batch(self.twins, tokens, offsets)
        native.extend_batch(self.cores, tokens, offsets)

    @rule(which=st.integers(0, 2))
    def start_document(self, which: int) -> None:
        self.twins[which].start_document()
        self.cores[which].start_document()

    @rule(which=st.integers(0, 2))
    def follow(self, which: int) -> None:
        self.twin_cursors.append(reference.Cursor(self.twins[which]))
        self.core_cursors.append(native.Cursor(self.cores[which]))

    @precondition(lambda self: self.twin_cursors)
    @rule(data=st.data())
    def match_all(self, data: Any) -> None:
        count = len(self.twin_cursors)
        rows = data.draw(st.lists(pieces, min_size=count, max_size=count))
        tokens = int32s([token for row in rows for token in row])
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        outputs = [[np.full(count, -7, np.int32) for _ in range(2)] for _ in range(2)]
        reference.match_batch(self.twin_cursors, tokens, offsets, *outputs[0])
        native.match_batch(self.core_cursors, tokens, offsets, *outputs[1])
        assert [each.tolist() for each in outputs[0]] == [each.tolist() for each in outputs[1]]

    @precondition(lambda self: self.twin_cursors)
    @rule(which=st.integers(0, 99), reset=st.booleans())
    def restart(self, which: int, reset: bool) -> None:
        for cursors in (self.twin_cursors, self.core_cursors):
            cursor = cursors[which % len(cursors)]
            cursor.reset() if reset else cursor.rematch()

    @rule(which=st.integers(0, 2), tokens=pieces)
    def find(self, which: int, tokens: list[int]) -> None:
        assert self.cores[which].find(int32s(tokens)) == self.twins[which].find(int32s(tokens))

    @rule(which=st.integers(0, 2), tokens=pieces)
    def refuse_a_negative_token(self, which: int, tokens: list[int]) -> None:
        for automaton in (self.twins[which], self.cores[which]):
            with pytest.raises(ValueError, match=rf"tokens\[{len(tokens)}\] is -1"):
                automaton.extend(int32s([*tokens, -1]))

    @invariant()
    def agrees(self) -> None:
        for twin, core in zip(self.twins, self.cores, strict=True):
            core.check_integrity()
            assert facts(core) == facts(twin)
        assert [match_of(c.match) for c in self.core_cursors] == [match_of(c.match) for c in self.twin_cursors]


AutomataMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)
test_automata_machine = AutomataMachine.TestCase
