"""What the drafter refuses, with the values in the message and before anything changes; and its threads."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.drafting_builders import MEMORY, draft, drafting, int32s
from tests.native.drivers import run_libfuzzer, run_programmes
from tests.native.test_automaton_native import BAD_OFFSETS, BAD_TOKENS

DRIVER = Path(__file__).parent / "draft_fuzz.cpp"


@pytest.fixture(params=["native", "reference"])
def core(request: pytest.FixtureRequest) -> Any:
    return drafting(request.param)


@pytest.fixture
def stream(core: Any) -> Any:
    stream = core.DraftStream(core.DraftModel(), core.Automaton())
    draft(core, [stream], [[1, 2, 1, 2, 1]])
    return stream


def call(core: Any, streams: Any, **changes: Any) -> dict[str, Any]:
    """A valid call with no new tokens and rows of 4 nodes, but for `changes`; returns what it was called with."""
    rows = len(streams)
    arguments: dict[str, Any] = {
        "tokens": int32s([]),
        "offsets": np.zeros(rows + 1, np.int64),
        "max_nodes": 3,
        "max_children": 0,
        "min_path_probability": 0.06,
        "tokens_out": np.zeros(rows * 4, np.int32),
        "parents_out": np.zeros(rows * 4, np.int32),
        "probability_out": np.zeros(rows * 4, np.float32),
        "num_nodes_out": np.zeros(rows, np.int32),
    }
    assert changes.keys() <= arguments.keys()
    arguments |= changes
    names = ("max_nodes", "tokens_out", "parents_out", "probability_out", "num_nodes_out")
    batch = core.DraftRows(**{name: arguments[name] for name in names})
    rest = {name: value for name, value in arguments.items() if name not in names}
    core.draft_batch(streams=streams, rows=batch, **rest)
    return arguments


def test_the_valid_call_is_valid(core: Any, stream: Any) -> None:
    assert call(core, [stream])["tokens_out"][:2].tolist() == [1, 2]
    assert call(core, (stream,))["tokens_out"][:2].tolist() == [1, 2]


BAD_ARGUMENTS = {
    "too few nodes": ({"max_nodes": -1}, "max_nodes is -1; expected 0 to 4096"),
    "too many nodes": ({"max_nodes": 4097}, "max_nodes is 4097; expected 0 to 4096"),
    "children": ({"max_children": -1}, r"max_children is -1; expected 0 \(any number\) or more"),
    "no bound": ({"min_path_probability": 0.0}, "min_path_probability is 0; expected more than 0, at most 1"),
    "high bound": ({"min_path_probability": 1.5}, "min_path_probability is 1.5; expected more than 0, at most 1"),
    "nan bound": ({"min_path_probability": float("nan")}, "min_path_probability is nan; expected"),
    "short tokens": ({"tokens_out": np.zeros(3, np.int32)}, "tokens_out: expected room for 1 rows of 4, got 3"),
    "long parents": ({"parents_out": np.zeros(5, np.int32)}, "parents_out: expected room for 1 rows of 4, got 5"),
    "wide chances": ({"probability_out": np.zeros(8, np.float32)}, "probability_out: expected room for 1 rows of 4"),
    "more rows": ({"num_nodes_out": np.zeros(2, np.int32)}, "tokens_out: expected room for 2 rows of 4, got 4"),
    "double": ({"probability_out": np.zeros(4)}, "probability_out: expected .* float32 .* got float64"),
    "int64 tokens": ({"tokens_out": np.zeros(4, np.int64)}, "tokens_out: expected .* int32 .* got int64"),
    "matrix": ({"parents_out": np.zeros((1, 4), np.int32)}, r"parents_out: .* shape \(1, 4\)"),
    "strided": ({"num_nodes_out": np.zeros(2, np.int32)[::2]}, None),  # one element is contiguous
    "strided row": ({"tokens_out": np.zeros(8, np.int32)[::2]}, r"tokens_out: .* strides \("),
    "offsets": ({"offsets": np.zeros(3, np.int64)}, "offsets: expected 2 for 1 rows, got 3"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_with_their_values(core: Any, stream: Any, name: str) -> None:
    changes, message = BAD_ARGUMENTS[name]
    if message is None:
        call(core, [stream], **changes)
        return
    with pytest.raises(ValueError, match=message):
        call(core, [stream], **changes)


def test_rows_for_another_batch_are_refused(core: Any, stream: Any) -> None:
    rows = core.DraftRows(1, int32s([0] * 4), int32s([0] * 4), np.zeros(4, np.float32), int32s([0] * 2))
    with pytest.raises(ValueError, match="rows: expected room for 1 streams, got 2"):
        core.draft_batch([stream], int32s([]), np.zeros(2, np.int64), rows, 0, 0.06)


def test_what_is_no_stream_is_refused() -> None:
    core = drafting("native")
    for streams in ([core.Automaton()], 5, [object()]):
        with pytest.raises(TypeError):
            core.draft_batch(streams, int32s([]), np.zeros(2, np.int64), core.DraftRows(0, *_one_row()), 0, 0.06)


def test_rows_keep_their_arrays_alive() -> None:
    arrays = _one_row()
    alive = [weakref.ref(array) for array in arrays]
    rows = drafting("native").DraftRows(0, *arrays)
    del arrays
    assert all(array() is not None for array in alive)
    del rows
    gc.collect()
    assert all(array() is None for array in alive)


def _one_row() -> list[Any]:
    return [int32s([0]), int32s([0]), np.zeros(1, np.float32), int32s([0])]


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_bad_tokens_are_refused_everywhere(core: Any, stream: Any, name: str) -> None:
    array, message = BAD_TOKENS[name]
    with pytest.raises(ValueError, match=message):
        call(core, [stream], tokens=array, offsets=np.array([0, array.size], np.int64))
    with pytest.raises(ValueError, match=message):
        stream.seek(array)
    assert draft(core, [stream], [[]])[0].tokens[:2] == [1, 2]


@pytest.mark.parametrize("name", BAD_OFFSETS)
def test_bad_offsets_are_refused(core: Any, name: str) -> None:
    offsets, message = BAD_OFFSETS[name]
    own = [core.Automaton(), core.Automaton()]
    streams = [core.DraftStream(core.DraftModel(), automaton) for automaton in own]
    with pytest.raises(ValueError, match=message):
        call(core, streams, tokens=int32s([1, 2]), offsets=offsets)
    assert [automaton.num_tokens for automaton in own] == [0, 0]


def test_a_bad_row_leaves_the_whole_batch_unchanged(core: Any) -> None:
    own = [core.Automaton(), core.Automaton()]
    streams = [core.DraftStream(core.DraftModel(), automaton) for automaton in own]
    with pytest.raises(ValueError, match=r"tokens\[1\] is -2; a token id is between 0 and 2147483647"):
        draft(core, streams, [[1], [-2]])
    with pytest.raises(ValueError, match=r"streams\[1\] is None"):
        draft(core, [streams[0], None], [[1], [2]])
    assert [automaton.num_tokens for automaton in own] == [0, 0]


def test_sources_that_are_refused(core: Any, stream: Any) -> None:
    source = core.Automaton()
    for kind in (0, -1, 4):
        with pytest.raises(ValueError, match=f"kind is {kind}; expected 1 to 3"):
            stream.add_source(source, kind)
    for similarity, shown in ((0.0, "0"), (-1.0, "-1"), (1.25, "1.25"), (float("nan"), "nan")):
        with pytest.raises(ValueError, match=f"similarity is {shown}; expected more than 0, at most 1"):
            stream.add_source(source, MEMORY, similarity)
    assert stream.add_source(source, MEMORY) == 1
    with pytest.raises(ValueError, match="the automaton is a source of this stream already"):
        stream.add_source(source, MEMORY)
    assert [stream.add_source(core.Automaton(), MEMORY) for _ in range(4)] == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="a stream has at most 6 sources, its own text included"):
        stream.add_source(core.Automaton(), MEMORY)
    assert draft(core, [stream], [[]])[0].tokens[:2] == [1, 2]


def test_a_streams_own_text_is_no_further_source(core: Any) -> None:
    own = core.Automaton()
    stream = core.DraftStream(core.DraftModel(), own)
    with pytest.raises(ValueError, match="the automaton is a source of this stream already"):
        stream.add_source(own, MEMORY)


def test_none_is_no_model_and_no_automaton(core: Any) -> None:
    native = drafting("native")
    for arguments in ((None, native.Automaton()), (native.DraftModel(), None)):
        with pytest.raises(TypeError):
            native.DraftStream(*arguments)
    with pytest.raises(TypeError):
        native.DraftStream(native.DraftModel(), native.Automaton()).add_source(None, MEMORY)


def test_a_negative_stop_token_is_refused(core: Any) -> None:
    with pytest.raises(ValueError, match=r"tokens\[1\] is -3; a token id"):
        core.DraftModel([2, -3])


def test_what_was_not_learned_is_not_restored(core: Any) -> None:
    """Each kind of number that cannot have been learned; after a refusal the model is as it was."""
    model = core.DraftModel()
    good = model.learned()
    num_weights = 44
    first_slot = len(good) - 2 * 2**16

    def changed(position: int, value: float) -> Any:
        values = good.copy()
        values[position] = value
        return values

    refused = [
        (good[:-1], rf"has {len(good)} numbers, got {len(good) - 1}; it was written by another version"),
        (changed(0, np.nan), "value 0 is nan, not a finite number"),
        (changed(3, np.inf), "value 3 is inf, not a finite number"),
        (changed(2, 8.5), "weight 2 is 8.5, expected -8 to 8"),
        (changed(num_weights, 4.5), "rate 0 is 4.5 of 4"),
        (changed(num_weights, -0.5), "rate 0 is -0.5 of 4"),
        (changed(num_weights + 3, 0.0), "rate 1 is .* of 0"),
        (changed(num_weights + 3, 3000.0), "rate 1 is .* of 3000"),
        (changed(first_slot + 5, -1.0), "slot 2 has a negative sum of squares, -1"),
        (good.astype(np.float32), "values: expected .* float64 .* got float32"),
    ]
    for values, message in refused:
        with pytest.raises(ValueError, match=message):
            model.restore(values)
        assert model.learned().tobytes() == good.tobytes()
    model.restore(changed(0, 7.5))
    assert model.learned()[0] == 7.5


def test_a_stream_keeps_all_that_it_reads_alive() -> None:
    core = drafting("native")
    stream = core.DraftStream(core.DraftModel(), core.Automaton())
    source = core.Automaton()
    source.extend(int32s(range(100)))
    stream.add_source(source, MEMORY)
    del source
    assert draft(core, [stream], [[5, 6, 7]])[0].tokens[:3] == [7, 8, 9]


def test_threads_draft_over_shared_sources_while_these_grow() -> None:
    """Streams of two threads read each other's texts, and both read one that a third thread writes."""
    core = drafting("native")
    model, shared = core.DraftModel(), core.Automaton()
    own = [core.Automaton(), core.Automaton()]
    streams = [core.DraftStream(model, automaton) for automaton in own]
    for index, stream in enumerate(streams):
        stream.add_source(own[1 - index], 1)
        stream.add_source(shared, MEMORY)
    wrong: list[BaseException] = []
    stop = threading.Event()

    def write() -> None:
        rng = random.Random(3)
        while not stop.is_set():
            shared.extend(int32s(rng.choices(range(8), k=50)))

    def follow(stream: Any, seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(400):
                [drafted] = draft(core, [stream], [rng.choices(range(8), k=3)])
                assert all(0 <= parent < node for node, parent in enumerate(drafted.parents) if node)
                stream.take_credits()
                model.learned()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=follow, args=(stream, seed)) for seed, stream in enumerate(streams)]
    writer = threading.Thread(target=write)
    for thread in (writer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    writer.join()
    assert wrong == []
    for automaton in (*own, shared):
        automaton.check_integrity()
    assert [automaton.num_tokens for automaton in own] == [1200, 1200]


def test_random_programmes_under_address_and_undefined_sanitisers(tmp_path: Path) -> None:
    run_programmes(DRIVER, tmp_path, runs=400)


def test_libfuzzer_finds_nothing(tmp_path: Path) -> None:
    run_libfuzzer(DRIVER, tmp_path, runs=1000)
