"""What only the compiled core has: its boundary, its stub, its threads, and builds under the sanitisers."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agentinfer.spec_sam
from agentinfer.spec_sam import reference
from tests.native.drivers import run_libfuzzer, run_programmes

SOURCES = Path(reference.__file__).parent
DRIVER = Path(__file__).parent / "automaton_fuzz.cpp"


def test_door_opens_on_the_compiled_core(native: Any) -> None:
    assert agentinfer.spec_sam.BACKEND == "native"
    assert agentinfer.spec_sam.Automaton is native.Automaton


def test_door_falls_back_to_the_twin() -> None:
    """A fresh interpreter in which the compiled core cannot be found."""
    code = (
        "import importlib.util, logging\n"
        "logging.basicConfig()\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name.endswith('._core') else find(name, *a)\n"
        "from agentinfer.spec_sam import BACKEND, Automaton\n"
        "print(BACKEND, Automaton.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["reference", "agentinfer.spec_sam.reference"]
    assert "no compiled core" in done.stderr


BAD_TOKENS = {
    "float": (np.zeros(3), r"float64|float"),
    "int64": (np.zeros(3, np.int64), "int64"),
    "two-dimensional": (np.zeros((2, 3), np.int32), r"shape \(2, 3\)"),
    "scalar": (np.zeros((), np.int32), r"shape \(\)"),
    "strided": (np.zeros(8, np.int32)[::2], r"strides \("),
    "reversed": (np.zeros(8, np.int32)[::-1], r"strides \(-"),
    "negative": (np.array([3, -5], np.int32), r"tokens\[1\] is -5"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_bad_token_arrays_are_refused_with_their_values(implementation: Any, name: str) -> None:
    array, message = BAD_TOKENS[name]
    automaton = implementation.Automaton()
    automaton.extend(np.array([1, 2], np.int32))
    for call in (automaton.extend, automaton.find, implementation.Cursor(automaton).advance):
        with pytest.raises(ValueError, match=message):
            call(array)
    assert automaton.tokens.tolist() == [1, 2]


BAD_OFFSETS = {
    "int32": (np.array([0, 1, 2], np.int32), "int32"),
    "too few": (np.array([0, 2], np.int64), "expected 3 for 2 rows, got 2"),
    "late start": (np.array([1, 1, 2], np.int64), r"offsets\[0\]: expected 0, got 1"),
    "backwards": (np.array([0, 2, 1], np.int64), r"offsets\[2\]: expected at least 2, got 1"),
    "short": (np.array([0, 1, 1], np.int64), r"offsets\[2\]: expected the number of tokens, 2, got 1"),
}


@pytest.mark.parametrize("name", BAD_OFFSETS)
def test_bad_offsets_are_refused_before_anything_changes(implementation: Any, name: str) -> None:
    offsets, message = BAD_OFFSETS[name]
    automata = [implementation.Automaton(), implementation.Automaton()]
    cursors = [implementation.Cursor(automaton) for automaton in automata]
    tokens = np.array([1, 2], np.int32)
    with pytest.raises(ValueError, match=message):
        implementation.extend_batch(automata, tokens, offsets)
    with pytest.raises(ValueError, match=message):
        implementation.match_batch(cursors, tokens, offsets, np.zeros(2, np.int32), np.zeros(2, np.int32))
    assert [automaton.num_tokens for automaton in automata] == [0, 0]


def test_a_bad_row_leaves_the_whole_batch_unchanged(implementation: Any) -> None:
    automata = [implementation.Automaton(), implementation.Automaton()]
    with pytest.raises(ValueError, match=r"tokens\[1\] is -2"):
        implementation.extend_batch(automata, np.array([1, -2], np.int32), np.array([0, 1, 2], np.int64))
    assert [automaton.num_tokens for automaton in automata] == [0, 0]


def test_outputs_must_have_a_row_each(implementation: Any) -> None:
    cursors = [implementation.Cursor(implementation.Automaton())]
    tokens, offsets = np.zeros(0, np.int32), np.zeros(2, np.int64)
    good, bad = np.zeros(1, np.int32), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="states_out: expected room for 1 rows, got 2"):
        implementation.match_batch(cursors, tokens, offsets, bad, good)
    with pytest.raises(ValueError, match=r"lengths_out: .*int64"):
        implementation.match_batch(cursors, tokens, offsets, good, np.zeros(1, np.int64))


@pytest.mark.parametrize("max_match", [0, -1, 2**29 + 1])
def test_max_match_out_of_range(implementation: Any, max_match: int) -> None:
    with pytest.raises(ValueError, match=f"max_match is {max_match}"):
        implementation.Automaton(max_match)


@pytest.mark.parametrize("state", [-1, 3])
def test_unknown_state_is_refused(implementation: Any, state: int) -> None:
    automaton = implementation.Automaton()
    automaton.extend(np.array([1, 2], np.int32))
    for call in (
        automaton.info,
        lambda each: automaton.continuations(each, 1),
        lambda each: automaton.following(each, 1),
    ):
        with pytest.raises(ValueError, match=f"state is {state}; this automaton has states 0 to 2"):
            call(state)


def test_none_is_no_automaton(native: Any) -> None:
    with pytest.raises(TypeError):
        native.Cursor(None)
    with pytest.raises(ValueError, match=r"automata\[0\] is None"):
        native.extend_batch([None], np.zeros(0, np.int32), np.zeros(2, np.int64))


def test_cursor_keeps_its_automaton_alive(native: Any) -> None:
    automaton = native.Automaton()
    automaton.extend(np.arange(1000, dtype=np.int32))
    cursor = native.Cursor(automaton)
    del automaton
    assert cursor.advance(np.arange(10, 40, dtype=np.int32)).length == 30


def test_memory_bytes_covers_states_and_text(native: Any) -> None:
    automaton = native.Automaton()
    empty_bytes = automaton.memory_bytes()
    automaton.extend(np.random.default_rng(5).integers(0, 50, 100_000, dtype=np.int32))
    needed_bytes = (
        24 * automaton.num_states + 4 * automaton.num_tokens + 8 * (automaton.num_edges - automaton.num_states)
    )
    assert needed_bytes < automaton.memory_bytes() - empty_bytes < 2.5 * needed_bytes


def test_stub_is_what_the_generator_writes(native: Any, tmp_path: Path) -> None:
    pytest.importorskip("nanobind.stubgen", reason="the stub generator comes with nanobind")
    regenerated = tmp_path / "_core.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", native.__name__, "-o", str(regenerated)]
    subprocess.run(command, check=True)
    committed = SOURCES / "_core.pyi"
    assert committed.read_text() == regenerated.read_text(), f"refresh it: {' '.join(command[:-1])} {committed}"


def test_two_threads_extend_different_automata_at_once(native: Any) -> None:
    """With the interpreter lock held during a call, two calls could never be under way together."""
    tokens = np.random.default_rng(7).integers(0, 1000, 200_000, dtype=np.int32)
    native.peak_parallel_calls()
    for _ in range(20):
        barrier = threading.Barrier(2)
        automata = [native.Automaton(), native.Automaton()]

        def extend(automaton: Any, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            automaton.extend(tokens)

        threads = [threading.Thread(target=extend, args=(automaton,)) for automaton in automata]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if native.peak_parallel_calls() >= 2:
            break
    else:
        pytest.fail("20 pairs of long calls never overlapped")
    assert automata[0].num_states == automata[1].num_states
    automata[0].check_integrity()


def test_readers_and_a_writer_share_one_automaton(native: Any) -> None:
    """What a match says is true of the text at some moment between two extensions, never of half of one."""
    automaton = native.Automaton()
    automaton.extend(np.arange(100, dtype=np.int32))
    stop = threading.Event()
    wrong: list[Any] = []

    def read() -> None:
        cursor = native.Cursor(automaton)
        while not stop.is_set():
            cursor.reset()
            match = cursor.advance(np.arange(20, 50, dtype=np.int32))
            info = automaton.info(match.state)
            if match.length != 30 or automaton.following(match.state, 1).tolist() != [50] or info.count is None:
                wrong.append((match, info))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(300):
        automaton.extend(np.arange(100, dtype=np.int32))
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    automaton.check_integrity()


def test_random_programmes_under_address_and_undefined_sanitisers(tmp_path: Path) -> None:
    run_programmes(DRIVER, tmp_path, runs=1500)


def test_libfuzzer_finds_nothing(tmp_path: Path) -> None:
    run_libfuzzer(DRIVER, tmp_path, runs=3000)
