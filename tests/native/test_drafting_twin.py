"""The compiled drafter in lockstep with its Python twin: drafts, credits and all that was learned, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from agentinfer.spec_sam import reference, reference_drafting
from tests.drafting_builders import MEMORY, RELATED, RETRIEVED, Draft, draft, int32s, token_sessions

native = pytest.importorskip("agentinfer.spec_sam._core", reason="the compiled core is not built: pip install -e .")

STOP = 3
letters = st.integers(0, 3) | st.sampled_from([7, 2**31 - 1])
pieces = (
    st.lists(letters, max_size=10)
    | st.tuples(letters, st.integers(1, 20)).map(lambda run: [run[0]] * run[1])
    | st.tuples(st.lists(letters, min_size=1, max_size=5), st.integers(1, 6)).map(lambda loop: loop[0] * loop[1])
)
limits = st.fixed_dictionaries(
    {
        "max_nodes": st.sampled_from([0, 1, 4, 16]),
        "max_children": st.sampled_from([0, 1, 2]),
        "worth": st.sampled_from([1e-5, 0.06, 0.5, 1.0]),
    }
)


class Both:
    """The same objects in both implementations; what is called on one is called on the other."""

    def __init__(self, num_streams: int, num_sources: int, max_match: int) -> None:
        self.sides = [
            Side(reference.Automaton, reference_drafting, num_streams, num_sources, max_match),
            Side(native.Automaton, native, num_streams, num_sources, max_match),
        ]

    def draft(self, rows: list[list[int]], **limits: Any) -> list[Draft]:
        twin, core = (draft(side.module, side.streams, rows, **limits) for side in self.sides)
        assert core == twin  # the probabilities are the same float32
        return core

    def check(self) -> None:
        twin, core = self.sides
        assert core.model.learned().tobytes() == twin.model.learned().tobytes()
        for twin_stream, core_stream in zip(twin.streams, core.streams, strict=True):
            for expected, credits in zip(twin_stream.take_credits(), core_stream.take_credits(), strict=True):
                assert credits.dtype == expected.dtype == np.int32
                assert credits.tolist() == expected.tolist()


class Side:
    def __init__(self, automaton: Any, module: Any, num_streams: int, num_sources: int, max_match: int) -> None:
        self.module = module
        self.model = module.DraftModel([STOP])
        self.sources = [automaton(max_match) for _ in range(num_sources)]
        self.streams = [module.DraftStream(self.model, automaton(max_match)) for _ in range(num_streams)]


class DraftingMachine(RuleBasedStateMachine):
    """Two requests and three shared sources, which grow while they are followed."""

    @initialize(max_match=st.sampled_from([1, 3, 64]))
    def start(self, max_match: int) -> None:
        self.both = Both(num_streams=2, num_sources=3, max_match=max_match)
        self.last: list[Draft] = []

    @rule(which=st.integers(0, 2), tokens=pieces, ends=st.booleans())
    def grow_source(self, which: int, tokens: list[int], ends: bool) -> None:
        for side in self.both.sides:
            side.sources[which].extend(int32s(tokens))
            if ends:
                side.sources[which].start_document()

    @rule(
        stream=st.integers(0, 1),
        which=st.integers(0, 2),
        kind=st.sampled_from([RELATED, MEMORY, RETRIEVED]),
        similarity=st.sampled_from([1.0, 0.3, 5e-324]),
    )
    def add_source(self, stream: int, which: int, kind: int, similarity: float) -> None:
        outcomes = []
        for side in self.both.sides:
            try:
                outcomes.append(side.streams[stream].add_source(side.sources[which], kind, similarity))
            except ValueError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]

    @rule(rows=st.lists(pieces, min_size=2, max_size=2), limits=limits)
    def accept_any(self, rows: list[list[int]], limits: dict[str, Any]) -> None:
        self.last = self.both.draft(rows, **limits)

    @rule(data=st.data(), limits=limits, bonus=letters)
    def accept_drafted(self, data: Any, limits: dict[str, Any], bonus: int) -> None:
        """As an engine does: a path of the last draft, and the token that the model adds to it."""
        rows = []
        for each in self.last or [Draft([0], [-1], [])] * 2:
            rows.append([*each.path(data.draw(st.integers(0, each.width - 1))), bonus])
        self.last = self.both.draft(rows, **limits)

    @rule(stream=st.integers(0, 1), tokens=pieces)
    def seek(self, stream: int, tokens: list[int]) -> None:
        for side in self.both.sides:
            side.streams[stream].seek(int32s(tokens))

    def teardown(self) -> None:
        self.both.check()


DraftingMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_drafting_machine = DraftingMachine.TestCase


@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1), alphabet=st.sampled_from([2, 5, 60]), max_children=st.sampled_from([0, 1, 3]))
def test_twin_learns_the_same_over_a_long_stream(seed: int, alphabet: int, max_children: int) -> None:
    """600 steps on text that repeats with errors: rates reach their limit and are halved, weights move both ways. 60
    letters make nodes of more than 32 continuations, which are not asked."""
    rng = np.random.default_rng(seed)
    both = Both(num_streams=1, num_sources=2, max_match=16)
    phrases = [rng.integers(0, alphabet, 30).tolist() for _ in range(4)]
    for side in both.sides:
        for source, kind, similarity in zip(side.sources, (RELATED, MEMORY), (1.0, 0.5), strict=True):
            for phrase in phrases:
                source.extend(int32s(phrase))
            side.streams[0].add_source(source, kind, similarity)
    text: list[int] = []
    while len(text) < 1800:
        phrase = phrases[rng.integers(4)]
        text += [token if rng.random() < 0.9 else int(rng.integers(alphabet)) for token in phrase]
    at = 0
    [drafted] = both.draft([text[:1]], max_children=max_children)
    for _ in range(600):
        step = text[at + 1 : at + 2 + drafted.accepted(text[at + 1 :])]
        at += len(step)
        if not step:
            break
        [drafted] = both.draft([step], max_children=max_children)
    both.check()


def test_twin_agrees_on_agent_sessions() -> None:
    """Sessions after one another in one model, each with what the earlier ones said as its memory."""
    model = {reference_drafting: reference_drafting.DraftModel(), native: native.DraftModel()}
    memory = {reference_drafting: reference.Automaton(), native: native.Automaton()}
    accepted = 0
    for turns in token_sessions(3):
        own = {reference_drafting: reference.Automaton(), native: native.Automaton()}
        length = 0
        for prompt, reply in turns[:8]:
            streams = {}
            for module in model:
                own[module].extend(prompt[length:])
                streams[module] = module.DraftStream(model[module], own[module])
                streams[module].seek(prompt[-64:])
                streams[module].add_source(memory[module], MEMORY)
            step = reply[:1].tolist()
            at = 1
            while True:
                twin, core = (draft(module, [streams[module]], [step])[0] for module in model)
                assert core == twin
                if at >= len(reply):
                    break
                count = core.accepted(reply[at:].tolist())
                accepted += count
                step = reply[at : at + count + 1].tolist()
                at += len(step)
            length = len(prompt) + len(reply)
            expected, credits = (streams[module].take_credits() for module in model)
            assert [side.tolist() for side in credits] == [side.tolist() for side in expected]
        for module, automaton in memory.items():
            automaton.extend(own[module].tokens)
            automaton.start_document()
    assert model[native].learned().tobytes() == model[reference_drafting].learned().tobytes()
    assert accepted > 100  # so the comparison was about something


def test_what_one_learned_the_other_restores() -> None:
    both = Both(num_streams=1, num_sources=1, max_match=8)
    for _ in range(20):
        both.draft([[1, 2, 1, 2, 0]])
    learned = both.sides[0].model.learned()
    models = [reference_drafting.DraftModel(), native.DraftModel()]
    fresh = models[0].learned()
    assert learned.tobytes() != fresh.tobytes()
    for model in models:
        model.restore(learned)
        assert model.learned().tobytes() == learned.tobytes()


def test_rates_at_their_limits_are_halved_alike() -> None:
    """Restored a little below 2000 trials, so that the next tokens bring each kind of rate over its limit."""
    both = Both(num_streams=1, num_sources=1, max_match=8)
    learned = both.sides[0].model.learned()
    rates = learned[44 : len(learned) - 2 * 2**16].reshape(-1, 2)
    rates[:] = (1200.0, 1999.75)
    for side in both.sides:
        side.model.restore(learned)
    for _ in range(20):
        both.draft([[1, 2, 1, 2, 0]])
    both.check()
    after = both.sides[1].model.learned()[44 : len(learned) - 2 * 2**16].reshape(-1, 2)
    num_calibration = 25
    assert after[:-num_calibration, 1].min() < 1100
    assert after[-num_calibration:, 1].min() < 1100
