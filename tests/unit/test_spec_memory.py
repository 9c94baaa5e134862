"""What a namespace remembers: two generations within their bytes, the latest turns always there."""

from __future__ import annotations

import numpy as np
import pytest

from agentinfer.spec_sam.background import BackgroundBuilder
from agentinfer.spec_sam.contexts import Contexts, Turn
from agentinfer.spec_sam.memory import Generation, NamespaceMemory
from tests.drafting_builders import int32s


def add(memory: NamespaceMemory, tokens: object, context: int | None = None) -> None:
    for chunk in memory.chunks(tokens, context):  # type: ignore[arg-type]
        chunk()


@pytest.mark.parametrize("turn_tokens", [200, 3000], ids=["short turns", "long turns"])
def test_generations_rotate_and_stay_within_their_bytes(turn_tokens: int) -> None:
    """Text that repeats little holds most states a token. Arenas grow by steps, so a generation may pass its half."""
    max_bytes = 1_000_000
    memory = NamespaceMemory(max_bytes, 64)
    rng = np.random.default_rng(20261123)
    peak_bytes = 0
    first = memory.generations[0]
    for _ in range(400_000 // turn_tokens):
        turn = rng.integers(0, 3000, turn_tokens, dtype=np.int32)
        add(memory, turn)
        peak_bytes = max(peak_bytes, memory.memory_bytes())
        latest = memory.generations[-1].automaton
        assert latest.find(turn) is not None  # the latest turn is always there
        assert len(memory.generations) <= 2
    assert first not in memory.generations
    assert memory.is_partial  # a generation went
    assert max_bytes / 2 < peak_bytes < 1.5 * max_bytes
    for generation in memory.generations:
        generation.automaton.check_integrity()


def test_what_the_former_generation_held_is_still_read() -> None:
    memory = NamespaceMemory(20_000, 64)
    turns = [int32s(range(number * 200, number * 200 + 200)) for number in range(4)]
    for turn in turns:
        add(memory, turn)
        if len(memory.generations) == 2:
            break
    old, young = (generation.automaton for generation in memory.generations)
    assert old.find(turns[0]) is not None
    assert young.find(turns[0]) is None
    assert not memory.is_partial


def test_no_match_runs_from_one_turn_into_the_next() -> None:
    memory = NamespaceMemory(2**20, 64)
    add(memory, int32s([1, 2, 3]))
    add(memory, int32s([4, 5, 6]))
    automaton = memory.generations[0].automaton
    assert automaton.num_documents == 2
    assert automaton.find(int32s([3, 4])) is None


def test_each_position_belongs_to_its_context() -> None:
    memory = NamespaceMemory(2**20, 64)
    contexts = [None, 7, 9, 8]
    for number, context in enumerate(contexts):
        add(memory, int32s([] if context == 9 else [number] * 3), context)
    [generation] = memory.generations
    found = [
        generation.context_at(position) for position, token in enumerate(generation.automaton.tokens) if token >= 0
    ]
    assert found == [None] * 3 + [7] * 3 + [8] * 3
    assert [memory.holds(context) for context in (7, 8, 9, 10)] == [True, True, True, False]
    assert Generation(4).context_at(0) is None


def test_namespaces_share_one_bound_and_the_idle_ones_go() -> None:
    builder = BackgroundBuilder()
    contexts = Contexts(builder, memory_bytes=200_000, max_match=64)
    rng = np.random.default_rng(3)
    for tenant in range(30):
        turn = rng.integers(0, 5000, 1000, dtype=np.int32)
        builder.submit("turns", contexts.remember(Turn(f"tenant {tenant}", "s", 0, turn[:500], turn[500:], 0)))
        builder.submit("turns", [lambda: contexts.memory("in use")])
        assert builder.drain(30)
        assert contexts.memory_bytes() < 200_000 + 60_000  # the bound, and the turn that came after the look
    assert contexts.memory("in use") is contexts.memory("in use")
    assert contexts.memory("tenant 29").memory_bytes() > contexts.memory("tenant 0").memory_bytes()
    builder.stop()
