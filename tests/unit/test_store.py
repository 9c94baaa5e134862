"""The store as its users see it: what a turn costs, who may open it, bounds, credit, readers, bad input."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from agentinfer.clock import ManualClock
from agentinfer.errors import ConfigError
from agentinfer.spec_sam.store import (
    ContextStore,
    StoreError,
    StoreOptions,
    records,
    tokenizer_fingerprint,
    verify_store,
)
from agentinfer.spec_sam.store.errors import (
    NotAStoreError,
    SegmentVersionError,
    StoreLockedError,
    UnknownNamespaceError,
    WrongTokenizerError,
)
from agentinfer.spec_sam.store.files import Files
from agentinfer.spec_sam.store.records import VERSION, Header, encode_header

START_S = 1_700_000_000.0


def open_store(path, tokenizer="one", **more):
    options = more.pop("options", StoreOptions(grace_s=0, half_life_s=100.0, fsync="never"))
    return ContextStore(path, tokenizer, clock=more.pop("clock", ManualClock(START_S)), options=options, **more)


def session_turns(num_turns, prompt_tokens=3000, new_tokens=60, response_tokens=40, seed=0):
    """Prompt and response of each turn; every prompt goes on after the text of the turn before."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, 5000, prompt_tokens)
    for turn in range(num_turns):
        response = rng.integers(0, 5000, response_tokens)
        yield turn, prompt, response
        prompt = np.concatenate([prompt, response, rng.integers(0, 5000, new_tokens)])


# What a turn costs


def test_a_session_costs_what_was_said_not_its_square(tmp_path) -> None:
    with open_store(tmp_path) as store:
        texts = {}
        for turn, prompt, response in session_turns(50):
            texts[store.add("ns", "s", turn, prompt, response)] = np.concatenate([prompt, response])
        longest = max(map(len, texts.values()))
        assert store.stats().namespaces[0].tokens == longest
        assert store.size_bytes < 4 * longest + 50 * 110
    with open_store(tmp_path) as store:
        for context_id, text in texts.items():
            assert np.array_equal(store.text(context_id), text)
        assert [c.turn for c in store.contexts("ns", "s")] == list(range(50))


def test_a_prompt_that_was_edited_is_stored_from_the_edit_on(tmp_path) -> None:
    """Thoughts stripped from the history, say."""
    with open_store(tmp_path) as store:
        store.add("ns", "s", 0, [*range(100)], [900, 901, 902, 903])
        edited = [*range(100), 902, 903, 7, 8]
        second = store.add("ns", "s", 1, edited, [5])
        assert store.tokens(second).tolist() == [902, 903, 7, 8, 5]
        assert store.text(second).tolist() == [*edited, 5]


def test_branches_of_one_session_each_go_on_from_their_own_turn(tmp_path) -> None:
    """Two sub-agents under one session id, turn by turn."""
    start = list(range(500))
    with open_store(tmp_path) as store:
        texts = {name: [*start, name] for name in (1001, 1002)}
        for turn in range(6):
            for name, text in texts.items():
                context_id = store.add("ns", "s", turn, text, [name, turn])
                assert store.text(context_id).tolist() == [*text, name, turn]
                texts[name] = [*text, name, turn, 77]
        assert store.stats().namespaces[0].tokens < 500 + 6 * 2 * 4


def test_sessions_share_a_system_prompt(tmp_path) -> None:
    system = list(range(2000))
    with open_store(tmp_path) as store:
        for n in range(10):
            context_id = store.add("ns", f"s{n}", 0, [*system, 5000 + n], [n])
            assert store.text(context_id).tolist() == [*system, 5000 + n, n]
        assert store.stats().namespaces[0].tokens == 2002 + 9 * 2


def test_the_same_turn_twice_is_one_context_and_a_second_answer_another(tmp_path) -> None:
    with open_store(tmp_path) as store:
        first = store.add("ns", "s", 0, range(100), [1, 2, 3])
        assert store.add("ns", "s", 0, range(100), [1, 2, 3]) == first
        second = store.add("ns", "s", 0, range(100), [1, 2, 4])
        assert second != first
        assert store.tokens(second).tolist() == [1, 2, 4]
        assert store.contexts()[1].response_start == 0
        assert store.add("ns", "s", 0, [], []) is None


# Bounds and credit


def test_bytes_stay_within_the_bound_and_the_useful_ones_stay(tmp_path) -> None:
    clock = ManualClock(START_S)
    options = StoreOptions(max_bytes=20_000, segment_bytes=2048, grace_s=5, half_life_s=1e6, fsync="never")
    with open_store(tmp_path, clock=clock, options=options) as store:
        useful = []
        for n in range(300):
            clock.advance(1)
            context_id = store.add("ns", f"s{n}", 0, range(n * 100, n * 100 + 50), [1, 2, 3])
            if n % 30 == 0:
                useful.append(context_id)
                store.credit(context_id, 50)
            assert store.size_bytes <= 20_000
            store.check_integrity()
        assert set(useful) <= {c.id for c in store.contexts()}
        assert len(store.contexts()) > 40
    on_disk = sum(p.stat().st_size for p in tmp_path.glob("*.segment"))
    assert on_disk <= 20_000


def test_a_new_context_has_a_grace_period(tmp_path) -> None:
    clock = ManualClock(START_S)
    with open_store(tmp_path, clock=clock, options=StoreOptions(grace_s=60)) as store:
        old = store.add("ns", "old", 0, range(100), [1])
        store.credit(old, 1)
        clock.advance(100)
        new = store.add("ns", "new", 0, range(200, 300), [1])
        store.evict(store.size_bytes - 10)
        assert [c.id for c in store.contexts()] == [new]


def test_usefulness_decays_and_counts_by_the_byte(tmp_path) -> None:
    clock = ManualClock(START_S)
    with open_store(tmp_path, clock=clock) as store:
        early = store.add("ns", "a", 0, range(100), [1])
        store.credit(early, 8)
        clock.advance(200)  # two half-lives
        assert store.usefulness(early) == pytest.approx(2)
        late = store.add("ns", "b", 0, range(200, 300), [1])
        store.credit(late, 3)
        long = store.add("ns", "c", 0, range(1000, 3000), [1])
        store.credit(long, 4)
        assert [c.id for c in store.evict(store.size_bytes - 10)] == [long]
        assert [c.id for c in store.evict(store.size_bytes - 10)] == [early]


def test_credit_survives_compaction_of_the_segment_it_was_written_to(tmp_path) -> None:
    clock = ManualClock(START_S)
    options = StoreOptions(segment_bytes=1024, grace_s=0, half_life_s=1e9)
    with open_store(tmp_path, clock=clock, options=options) as store:
        first = store.add("ns", "a", 0, range(200), [1])
        filler = [store.add("ns", f"f{n}", 0, range(1000 * n, 1000 * n + 200), [1]) for n in range(1, 5)]
        store.credit(first, 5)
        store.flush()  # lies in the newest segment now, `first` in the oldest
        store.remove(filler)
    with open_store(tmp_path, clock=clock, options=options) as store:
        assert store.usefulness(first) == pytest.approx(5)


def test_credit_is_saved_along_with_the_next_context_when_due(tmp_path) -> None:
    clock = ManualClock(START_S)
    store = open_store(tmp_path, clock=clock, options=StoreOptions(credit_save_s=10, half_life_s=1e9))
    first = store.add("ns", "a", 0, range(100), [1])
    store.credit(first, 5)
    clock.advance(11)
    store.add("ns", "b", 0, range(100, 200), [1])
    store.abandon()
    with open_store(tmp_path, clock=clock) as again:
        assert again.usefulness(first) == pytest.approx(5, rel=0.1)


def test_the_index_stays_within_its_bound(tmp_path) -> None:
    options = StoreOptions(max_index_bytes=60_000, grace_s=0, fsync="never")
    rng = np.random.default_rng(0)
    with open_store(tmp_path, options=options) as store:
        store.add("ns", "first", 0, range(50), [1])
        store.retrieve("ns", range(50), 1)
        for n in range(200):
            store.add("ns", f"s{n}", 0, rng.integers(0, 50_000, 300), [1])
            assert store.stats().index_bytes <= 60_000 + 4000
        store.check_integrity()
        assert len(store.contexts()) > 8


def test_a_smaller_bound_is_met_at_the_next_start(tmp_path) -> None:
    with open_store(tmp_path) as store:
        for n in range(50):
            store.add("ns", f"s{n}", 0, range(n * 100, n * 100 + 90), [1])
        assert store.size_bytes > 15_000
    with open_store(tmp_path, options=StoreOptions(max_bytes=8000, grace_s=0)) as store:
        assert store.size_bytes <= 8000
        store.check_integrity()


def test_pruning_by_age_and_namespace(tmp_path) -> None:
    clock = ManualClock(START_S)
    with open_store(tmp_path, clock=clock) as store:
        old_red = store.add("red", "s", 0, range(50), [1])
        old_blue = store.add("blue", "s", 0, range(50), [1])
        clock.advance(1000)
        new_red = store.add("red", "t", 0, range(100, 150), [1])
        assert [c.id for c in store.evict(namespace="red", older_than_s=500)] == [old_red]
        assert [c.id for c in store.evict(0, namespace="blue")] == [old_blue]
        assert store.namespaces == ["red"]
        assert [c.id for c in store.contexts()] == [new_red]
        with pytest.raises(UnknownNamespaceError, match=r"'blue' is stored; there are: red"):
            store.evict(0, namespace="blue")


def test_ids_are_not_given_again_after_everything_went(tmp_path) -> None:
    clock = ManualClock(START_S)
    with open_store(tmp_path, clock=clock) as store:
        first = store.add("ns", "s", 0, range(10), [1])
        store.evict(0)
    clock.advance(1)
    with open_store(tmp_path, clock=clock) as store:
        assert store.add("ns", "s", 0, range(10), [1]) > first


# Many processes


def test_readers_see_what_is_appended_and_compacted_after_a_refresh(tmp_path) -> None:
    with open_store(tmp_path) as store:
        first = store.add("ns", "a", 0, range(100), [1])
        readers = [open_store(tmp_path, read_only=True) for _ in range(2)]
        held = readers[0].retrieve("ns", range(100), 1)[0].tokens
        second = store.add("ns", "b", 0, range(200, 300), [2])
        store.credit(second, 5)
        store.flush()
        assert [c.id for c in readers[0].contexts()] == [first]
        for reader in readers:
            assert reader.refresh()
            assert not reader.refresh()
            assert [c.id for c in reader.contexts()] == [first, second]
            assert reader.usefulness(second) == 5
            assert reader.retrieve("ns", range(200, 300), 1)[0].context_id == second
            reader.check_integrity()
        store.remove([first])
        for reader in readers:
            assert reader.refresh()
            assert [c.id for c in reader.contexts()] == [second]
            reader.check_integrity()
        assert held.tolist() == [*range(100), 1]


def test_one_writer_at_a_time(tmp_path) -> None:
    program = "import sys; from agentinfer.spec_sam.store import ContextStore; ContextStore(sys.argv[1], 'one')"
    with open_store(tmp_path):
        with pytest.raises(StoreLockedError, match="one writer"):
            open_store(tmp_path)
        command = [sys.executable, "-c", program, str(tmp_path)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        assert child.returncode == 1
        assert "StoreLockedError" in child.stderr
        open_store(tmp_path, read_only=True)
    open_store(tmp_path).close()


def test_a_read_only_store_takes_credit_for_itself_and_refuses_contexts(tmp_path) -> None:
    with open_store(tmp_path) as store:
        first = store.add("ns", "a", 0, range(100), [1])
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with open_store(tmp_path, read_only=True) as reader:
        reader.credit(first, 3)
        assert reader.usefulness(first) == 3
        with pytest.raises(StoreError, match="read-only"):
            reader.add("ns", "b", 0, range(100), [2])
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_threads_add_credit_and_retrieve_at_once(tmp_path) -> None:
    options = StoreOptions(max_bytes=60_000, segment_bytes=4096, grace_s=0, credit_save_s=0, fsync="never")
    errors = []
    is_over = threading.Event()
    with ContextStore(tmp_path, "one", options=options) as store:

        def add(thread) -> None:
            for turn, prompt, response in session_turns(40, 200, seed=thread):
                store.add(f"ns{thread % 2}", f"s{thread}", turn, prompt, response)

        def ask() -> None:
            rng = np.random.default_rng(0)
            while not is_over.is_set():
                for hit in store.retrieve("ns0", rng.integers(0, 5000, 300), 4, exclude_session="s0"):
                    assert hit.session != "s0"
                    assert len(hit.tokens) >= hit.response_start
                    store.credit(hit.context_id, 1)
                store.stats()

        def guarded(work, *args) -> None:
            try:
                work(*args)
            except BaseException as error:
                errors.append(error)

        adding = [threading.Thread(target=guarded, args=(add, n)) for n in range(4)]
        asking = [threading.Thread(target=guarded, args=(ask,)) for _ in range(2)]
        for thread in [*adding, *asking]:
            thread.start()
        for thread in adding:
            thread.join()
        is_over.set()
        for thread in asking:
            thread.join()
        assert not errors
        store.check_integrity()
    assert not verify_store(tmp_path).damage


# Bad input


def test_another_tokenizer_is_refused(tmp_path) -> None:
    with open_store(tmp_path) as store:
        store.add("ns", "a", 0, range(10), [1])
    for read_only in (False, True):
        with pytest.raises(WrongTokenizerError, match="of tokenizer one, expected two"):
            open_store(tmp_path, "two", read_only=read_only)
    with open_store(tmp_path, None) as store:
        assert store.tokenizer == "one"


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for read_only in (False, True):
        with pytest.raises(NotAStoreError, match=r"it holds thesis\.tex"):
            open_store(tmp_path, read_only=read_only)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(NotAStoreError, match="no such folder"):
        open_store(tmp_path / "none", read_only=True)
    with pytest.raises(NotAStoreError, match="it is a file"):
        verify_store(tmp_path / "thesis.tex")
    with pytest.raises(NotAStoreError, match="cannot hold a store"):
        open_store(tmp_path / "thesis.tex" / "store")


def test_a_segment_of_a_later_version_is_left_alone(tmp_path, monkeypatch) -> None:
    open_store(tmp_path).close()
    monkeypatch.setattr(records, "VERSION", VERSION + 1)
    later = tmp_path / f"{1:016x}.segment"
    later.write_bytes(encode_header(Header(1, "one", "ns")))
    monkeypatch.undo()
    data = later.read_bytes()
    with pytest.raises(SegmentVersionError, match=f"format version {VERSION + 1}, this agentinfer reads {VERSION}"):
        open_store(tmp_path)
    assert later.read_bytes() == data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ns", "s", 0, [[1]], [1]), "prompt: expected a list of token ids"),
        (("ns", "s", 0, [1], [0.5]), "response: expected a list of token ids, got float64"),
        (("ns", "s", 0, [2**31], [1]), "prompt: expected 32-bit token ids, got 2147483648"),
        (("ns", "s", -1, [1], [1]), "turn: expected 0 to"),
        (("n" * 2000, "s", 0, [1], [1]), "namespace: expected up to 1024 bytes"),
        (("ns", "s" * 2000, 0, [1], [1]), "session: expected up to 1024 bytes"),
        (("ns", "\ud800", 0, [1], [1]), "session: expected up to 1024 bytes of UTF-8"),
        (("ns", "s", 0, range(200_000), [1]), "raise it"),
    ],
    ids=["shape", "dtype", "range", "turn", "namespace", "session", "surrogate", "too big"],
)
def test_bad_contexts_are_refused_in_words(tmp_path, arguments, message) -> None:
    with open_store(tmp_path, options=StoreOptions(max_bytes=100_000)) as store:
        with pytest.raises(StoreError, match=message):
            store.add(*arguments)
        store.check_integrity()
        assert store.contexts() == []


def test_add_new_checks_what_it_is_told_about_the_parent(tmp_path) -> None:
    with open_store(tmp_path) as store:
        parent = store.add_new("red", "s", 0, range(10), 5)
        for wrong in ({"parent": 12}, {"parent": parent, "shared": 11}, {"parent": parent}):
            with pytest.raises(StoreError, match="expected"):
                store.add_new("red", "s", 1, [1], 0, **({"shared": 0} | wrong))
        with pytest.raises(StoreError, match="stored in 'blue'"):
            store.add_new("blue", "s", 1, [1], 0, parent=parent, shared=4)
        child = store.add_new("red", "s", 1, [1], 0, parent=parent, shared=4)
        assert store.text(child).tolist() == [0, 1, 2, 3, 1]


def test_a_closed_store_says_so(tmp_path) -> None:
    store = open_store(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="was closed"):
        store.add("ns", "s", 0, [1], [1])


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="fsync: expected one of always, rotate, never, got 'sometimes'"):
        StoreOptions(fsync="sometimes")
    with pytest.raises(ConfigError, match="max_bytes: expected at least"):
        StoreOptions(max_bytes=3)
    with pytest.raises(ConfigError, match="half_life_s"):
        StoreOptions(half_life_s=0)


def test_fingerprint_is_that_of_the_vocabulary(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StoreError, match="no tokenizer there"):
        tokenizer_fingerprint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("a")
    first = tokenizer_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{} ")
    assert tokenizer_fingerprint(tmp_path) == first
    (tmp_path / "tokenizer.json").write_text("b")
    assert tokenizer_fingerprint(tmp_path) != first


@pytest.mark.parametrize(("policy", "num_syncs"), [("always", 6), ("rotate", 1), ("never", 0)])
def test_fsync_policy_decides_when_records_are_forced_to_disk(tmp_path, policy, num_syncs) -> None:
    class Counting(Files):
        synced = 0

        def sync(self, path):
            self.synced += path.suffix == ".segment"

    files = Counting()
    with open_store(tmp_path, files=files, options=StoreOptions(fsync=policy)) as store:
        for n in range(6):
            store.add_new("ns", "s", n, range(10), 5)
        assert files.synced == (num_syncs if policy == "always" else 0)
    assert files.synced == num_syncs


def test_credit_given_while_credit_is_saved_is_saved_the_next_time(tmp_path) -> None:
    class Crediting(Files):
        def write_at(self, path, offset, data):
            super().write_at(path, offset, data)
            if store is not None:
                store.credit(first, 1)

    store = None
    opened = open_store(tmp_path, files=Crediting(), options=StoreOptions(half_life_s=1e9))
    first = opened.add("ns", "a", 0, range(100), [1])
    opened.credit(first, 5)
    store = opened
    store.flush()
    store = None
    opened.flush()
    opened.abandon()
    with open_store(tmp_path) as again:
        assert again.usefulness(first) == pytest.approx(6)


def test_credit_that_could_not_be_saved_is_saved_later_and_the_context_is_kept(tmp_path, caplog) -> None:
    class FullForCredit(Files):
        is_full = False

        def write_at(self, path, offset, data):
            if self.is_full and len(data) < 100:  # a credit record
                raise OSError(28, "No space left on device")
            super().write_at(path, offset, data)

    files, clock = FullForCredit(), ManualClock(START_S)
    store = open_store(tmp_path, files=files, clock=clock, options=StoreOptions(credit_save_s=1, half_life_s=1e9))
    first = store.add("ns", "a", 0, range(100), [1])
    store.credit(first, 5)
    clock.advance(2)
    files.is_full = True
    second = store.add("ns", "b", 0, range(100, 200), [1])
    assert [c.id for c in store.contexts()] == [first, second]
    assert "Credit is not saved" in caplog.text
    with pytest.raises(StoreError, match="No space left"):
        store.flush()
    files.is_full = False
    store.flush()
    store.abandon()
    with open_store(tmp_path, clock=clock) as again:
        assert again.usefulness(first) == pytest.approx(5)
        assert [c.id for c in again.contexts()] == [first, second]
