"""A store survives what happens to files: cut or changed at any byte, a process killed at any step, no room."""

from __future__ import annotations

import errno
import logging
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from agentinfer.clock import ManualClock
from agentinfer.spec_sam.store import ContextStore, StoreError, StoreOptions, verify_store
from agentinfer.spec_sam.store.files import Files
from agentinfer.spec_sam.store.records import decode_header, scan

TOKENIZER = "tokenizer.json:1"
START_S = 1_700_000_000.0


class Killed(BaseException):
    """The process ends here."""


class FailingFiles(Files):
    """Fails at operation `at` (from 0): killed before it, after it, in the middle of a write, or for want of room."""

    def __init__(self, at: int | None = None, how: str = "before") -> None:
        self.at, self.how, self.num_done = at, how, 0
        self.is_dead = False

    def _step(self, operation, partial=lambda: None):
        if self.is_dead:
            raise Killed
        number, self.num_done = self.num_done, self.num_done + 1
        if number != self.at:
            return operation()
        if self.how == "full":
            partial()
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.how == "middle":
            partial()
        elif self.how == "after":
            operation()
        self.is_dead = True
        raise Killed

    def create(self, path, data):
        half = data[: len(data) // 2]
        self._step(lambda: super(FailingFiles, self).create(path, data), lambda: Files().create(path, half))

    def write_at(self, path, offset, data):
        half = data[: len(data) // 2]
        write = super().write_at
        self._step(lambda: write(path, offset, data), lambda: write(path, offset, half))

    def truncate(self, path, size_bytes):
        truncate = super().truncate
        self._step(lambda: truncate(path, size_bytes))

    def sync(self, path):
        self._step(lambda: None)

    def rename(self, source, target):
        rename = super().rename
        self._step(lambda: rename(source, target))

    def remove(self, path):
        remove = super().remove
        self._step(lambda: remove(path))


def open_store(path, **more):
    defaults = {"options": StoreOptions(grace_s=0), "clock": ManualClock(START_S), "files": FailingFiles()}
    return ContextStore(path, TOKENIZER, **(defaults | more))


def fill(store, num_contexts=4, namespace="ns"):
    """Contexts of different lengths, two with credit; id -> tokens."""
    held = {}
    for turn in range(num_contexts):
        tokens = np.arange(turn * 100, turn * 100 + 5 + 3 * turn)
        held[store.add_new(namespace, f"session {turn % 2}", turn, tokens, 2)] = tokens.tolist()
        if turn % 2:
            store.credit(next(reversed(held)), 10.0 * turn)
            store.flush()
    return held


def contents(store):
    return {context.id: store.tokens(context.id).tolist() for context in store.contexts()}


def only_segment(path):
    (segment,) = path.glob("*.segment")
    return segment


def record_ends(data):
    header, start = decode_header(data)
    return [start] + [record.end for record in scan(data, start, header.sequence).records]


@pytest.fixture
def filled(tmp_path):
    with open_store(tmp_path / "store") as store:
        held = fill(store, num_contexts=3)
    return tmp_path / "store", held


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.WARNING)


def test_cut_at_every_byte_keeps_every_whole_record_before_the_cut(filled) -> None:
    path, held = filled
    segment = only_segment(path)
    data = segment.read_bytes()
    ends = record_ends(data)
    for cut in range(len(data)):
        segment.write_bytes(data[:cut])
        whole = max((end for end in ends if end <= cut), default=0)
        expected = {i: t for i, t in held.items() if _end_of(data, i) <= cut}
        with open_store(path, read_only=True) as reader:
            assert contents(reader) == expected, f"cut at {cut}"
        assert segment.read_bytes() == data[:cut], "a reader changed the file"
        with open_store(path) as writer:
            assert contents(writer) == expected, f"cut at {cut}"
            writer.check_integrity()
            if whole:
                assert segment.stat().st_size == whole, "the torn tail stays, or more went"
            new = writer.add_new("ns", "after", 0, [1, 2, 3], 1)
        with open_store(path) as again:
            assert contents(again) == {**expected, new: [1, 2, 3]}, f"cut at {cut}"
        for file in path.glob("*.[sc]*"):
            file.unlink(missing_ok=True) if file != segment and file.name != "store.lock" else None


def _end_of(data, context_id):
    header, start = decode_header(data)
    return next(r.end for r in scan(data, start, header.sequence).records if r.sequence == context_id)


def test_a_flipped_byte_costs_the_record_it_is_in_and_nothing_else(filled, caplog) -> None:
    path, held = filled
    segment = only_segment(path)
    data = segment.read_bytes()
    header, start = decode_header(data)
    records = scan(data, start, header.sequence).records
    for place in range(len(data)):
        caplog.clear()
        segment.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        hit = next((r.sequence for r in records if r.start <= place < r.end), None)
        expected = {} if place < start else {i: tokens for i, tokens in held.items() if i != hit}
        damage = verify_store(path).damage
        assert damage, f"byte {place}: not noticed"
        assert str(segment) in str(damage[0])
        assert "expected" in str(damage[0])
        with open_store(path, read_only=True) as reader:
            assert contents(reader) == expected, f"byte {place}"
        with open_store(path) as writer:
            assert contents(writer) == expected, f"byte {place}"
            writer.check_integrity()
            for i, accepted in ((i, 10.0 * t) for t, i in enumerate(held) if t % 2 and i in expected):
                is_credit_hit = hit is not None and hit not in held
                assert writer.usefulness(i) == pytest.approx(accepted) or is_credit_hit, f"byte {place}: credit"
        assert f"{segment}: offset " in caplog.text
        is_last = hit == records[-1].sequence
        assert segment.with_suffix(".corrupt").exists() != is_last, f"byte {place}: set aside unless a torn tail"
        assert not verify_store(path).damage
        for file in [*path.glob("*.segment"), *path.glob("*.corrupt")]:
            file.unlink()


def test_other_segments_go_on_when_one_is_damaged(tmp_path, caplog) -> None:
    with open_store(tmp_path) as store:
        kept, lost = fill(store, namespace="kept"), fill(store, namespace="lost")
    broken = sorted(tmp_path.glob("*.segment"))[1]
    broken.write_bytes(b"\0" * 100)
    with open_store(tmp_path) as store:
        assert contents(store) == kept
        assert not lost.keys() & contents(store).keys()
        assert store.stats().set_aside == 1
    assert f"{broken}: offset 0: expected magic b'AGICORP\\n', seen b'\\x00" in caplog.text


def test_blocks_of_another_segment_are_not_taken_for_records(filled) -> None:
    """As a file system may show after a crash, in a block that was never written."""
    path, held = filled
    first = only_segment(path)
    old = first.read_bytes()
    stale = old[record_ends(old)[0] :]
    with open_store(path) as store:
        other = store.add_new("other", "s", 0, [7, 7, 7], 0)
    (second,) = (p for p in path.glob("*.segment") if p != first)
    second.write_bytes(second.read_bytes() + stale)
    with open_store(path) as store:
        assert [c.id for c in store.contexts("other")] == [other]
        assert contents(store) == {**held, other: [7, 7, 7]}


@pytest.mark.parametrize("how", ["before", "middle", "after"])
def test_killed_at_any_step_of_adding_and_making_room(tmp_path, how) -> None:
    """Whatever was acknowledged and not evicted is there; evicted contexts may come back, never half."""
    options = StoreOptions(max_bytes=6000, segment_bytes=1024, grace_s=0, credit_save_s=0)
    for at in range(400):
        path = tmp_path / f"{how}{at}"
        files = FailingFiles(at, how)
        clock = ManualClock(START_S)
        acknowledged: dict[int, list[int]] = {}
        store = None
        try:
            store = open_store(path, files=files, options=options, clock=clock)
            rng = np.random.default_rng(3)
            for turn in range(24):
                clock.advance(1.0)
                tokens = rng.integers(0, 1000, int(rng.integers(20, 120)))
                acknowledged[store.add_new(f"ns{turn % 2}", "s", turn, tokens, 3)] = tokens.tolist()
                store.credit(next(iter(store.contexts())).id, float(turn))
            store.close()
            assert files.num_done <= at, "the failure was passed over"
            break
        except Killed:
            if store is not None:
                in_memory = contents(store)
                store.abandon()
            else:
                in_memory = {}
        with open_store(path, options=options, clock=clock) as again:
            found = contents(again)
            again.check_integrity()
        # A context whose removal was under way may be gone or there; one whose add was under way likewise.
        assert {i: t for i, t in found.items() if i in acknowledged} == {
            i: t for i, t in acknowledged.items() if i in found
        }, f"step {at}: changed"
        assert in_memory.keys() & acknowledged.keys() <= found.keys() | _under_removal(in_memory, found), f"step {at}"
        assert not verify_store(path).damage
        assert not list(path.glob("*.tmp")) + list(path.glob("*.corrupt"))
    else:
        pytest.fail("more steps than expected")
    assert at > 60, "too few steps to have made room"


def _under_removal(in_memory, found):
    """Killed after the disk was changed and before memory was: at most one rewrite's victims."""
    missing = in_memory.keys() - found.keys()
    return missing if len(missing) <= 12 else set()


@pytest.mark.parametrize("at", range(4, 40))
def test_disk_full_is_an_error_and_nothing_else(tmp_path, at, caplog) -> None:
    files = FailingFiles(at, "full")
    store = open_store(tmp_path, files=files, options=StoreOptions(max_bytes=6000, segment_bytes=1024, grace_s=0))
    held, num_errors, messages = {}, 0, []
    for turn in range(30):
        tokens = np.arange(turn, turn + 40).tolist()
        try:
            held[store.add_new("ns", "s", turn, tokens, 3)] = tokens
        except StoreError as error:
            num_errors += 1
            messages.append(str(error))
        store.check_integrity()
        assert contents(store) == {i: held[i] for i in contents(store)}
    assert num_errors <= 1
    assert all("No space left on device" in m and "free" in m for m in messages)
    seen = contents(store)
    try:
        store.close()
    except StoreError:
        assert not num_errors
        num_errors += 1
    assert num_errors == (files.num_done > at and not caplog.records)
    with open_store(tmp_path, options=StoreOptions(max_bytes=6000, segment_bytes=1024)) as again:
        assert contents(again) == seen
        again.check_integrity()


@pytest.mark.parametrize("how", ["before", "middle", "after"])
def test_killed_at_any_step_of_a_repair(filled, tmp_path, how) -> None:
    path, held = filled
    segment = only_segment(path)
    data = segment.read_bytes()
    first = min(held)
    place = _end_of(data, first) - 9  # in the first context's tokens
    damaged = data[:place] + b"\xff" + data[place + 1 :]
    expected = {i: tokens for i, tokens in held.items() if i != first}
    for at in range(40):
        for file in [*path.glob("*.segment"), *path.glob("*.corrupt")]:
            file.unlink()
        segment.write_bytes(damaged)
        files = FailingFiles(at, how)
        try:
            open_store(path, files=files).close()
            assert files.num_done <= at
            break
        except Killed:
            pass
        with open_store(path) as again:
            assert contents(again) == expected, f"step {at}"
            again.check_integrity()
    assert at >= 6


def test_a_killed_process_loses_nothing_it_was_told_is_stored(tmp_path) -> None:
    """SIGKILL in the middle of adding, the real thing."""
    program = """
        import itertools, sys
        import numpy as np
        from agentinfer.spec_sam.store import ContextStore, StoreOptions
        store = ContextStore(sys.argv[1], "tokenizer.json:1", options=StoreOptions(segment_bytes=8192, fsync="never"))
        for turn in itertools.count():
            tokens = np.full(50 + turn % 100, turn)
            print(store.add_new("ns", f"s{turn}", turn, tokens, 0), turn, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(300)]
        child.send_signal(signal.SIGKILL)
        lines += [line for line in child.stdout if line.endswith("\n")]
    told = {int(i): int(turn) for i, turn in (line.split() for line in lines)}
    with open_store(tmp_path / "store") as store:
        found = {c.id: c.turn for c in store.contexts()}
        assert told.items() <= found.items()
        assert len(found) <= len(told) + 1
        assert all(set(store.tokens(i).tolist()) == {turn} for i, turn in found.items())
        store.check_integrity()


def test_a_reader_keeps_up_with_a_writer_in_another_process_that_evicts_all_the_time(tmp_path) -> None:
    program = """
        import itertools, sys
        import numpy as np
        from agentinfer.spec_sam.store import ContextStore, StoreOptions
        options = StoreOptions(max_bytes=40_000, segment_bytes=4096, grace_s=0, fsync="never")
        store = ContextStore(sys.argv[1], "tokenizer.json:1", options=options)
        for turn in itertools.count():
            store.add_new(f"ns{turn % 3}", f"s{turn}", turn, np.full(50 + turn % 100, turn), 0)
            if turn == 100:
                print("ready", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        try:
            seen, latest = [], 0
            with open_store(tmp_path / "store", read_only=True) as reader:
                # Until the writer has evicted all of what was there at first.
                while len(seen) < 40 or seen[0] & seen[-1]:
                    if reader.refresh():
                        found = reader.contexts()
                        assert all(set(reader.tokens(c.id).tolist()) == {c.turn} for c in found)
                        reader.check_integrity()
                        seen.append({c.id for c in found})
                        assert latest <= max(c.turn for c in found)
                        latest = max(c.turn for c in found)
                    assert child.poll() is None, "the writer stopped"
        finally:
            child.kill()


def test_a_writer_leaves_no_temporary_files_of_a_killed_one(filled) -> None:
    path, held = filled
    (path / "00ff.tmp").write_bytes(b"half")
    with open_store(path) as store:
        assert contents(store) == held
    assert not Path(path / "00ff.tmp").exists()
