"""The latency file: what was learned comes back as it was; no crash, cut or foreign file costs more than that."""

from __future__ import annotations

import errno
import logging
import os
import random

import pytest

from agentinfer.clock import ManualClock
from agentinfer.errors import ConfigError
from agentinfer.gap_histogram import NUM_BUCKETS
from agentinfer.radix_ext import latency_file
from agentinfer.radix_ext.latency_file import MAX_FILE_BYTES, LatencyFile, decode, encode, read
from agentinfer.radix_ext.tool_latency import ToolLatency
from agentinfer.sealed_file import SealError, seal
from agentinfer.tool_gaps import MAX_NAME_CHARS, MAX_TOOLS, ToolGaps

ASKED = [(("bash",), 0.0), (("bash",), 30.0), (("bash", "read"), 1.0), ((), 5.0), (("unknown",), 2.0)]


def learned(num_gaps: int = 200, seed: int = 1) -> ToolGaps:
    gaps, rng = ToolGaps(), random.Random(seed)
    for number in range(num_gaps):
        names = rng.choice([("bash",), ("read",), ("read", "bash"), ()])
        gaps.observe(names, rng.lognormvariate(1, 2), 1e9 + number)
    gaps.observe_never(("bash",))
    return gaps


def rates(gaps: ToolGaps) -> list[float]:
    latency = ToolLatency(gaps)
    return [latency.return_rate(tools, waited_s) for tools, waited_s in ASKED]


@pytest.fixture
def file(tmp_path) -> LatencyFile:
    return LatencyFile(tmp_path / "deep" / "latency", ManualClock(1000.0), save_period_s=60.0)


def names_in(file: LatencyFile) -> set[str]:
    return {found.name for found in file.path.parent.iterdir()}


def test_what_was_saved_predicts_the_same(file):
    gaps = learned()
    file.save(gaps)
    loaded = LatencyFile(file.path, ManualClock()).load()
    assert loaded.state() == gaps.state()
    assert rates(loaded) == rates(gaps)
    assert rates(loaded) != rates(ToolGaps())
    assert names_in(file) == {"latency"}


def test_no_file_is_an_empty_start(file, caplog):
    assert file.load().num_observed == 0
    assert caplog.records == []


def test_every_cut_is_noticed():
    content = encode(learned(num_gaps=20))
    for num_bytes in range(len(content)):
        with pytest.raises(SealError):
            decode(content[:num_bytes])


def test_every_flipped_byte_is_noticed():
    content = encode(learned(num_gaps=20))
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        with pytest.raises(SealError):
            decode(bytes(changed))


def _sealed(body: bytes) -> bytes:
    return seal("agentinfer-tool-latency", latency_file.VERSION, body)


CHANGES = {
    "cut": (lambda content: content[:-1], "do not fit its first line"),
    "empty": (lambda content: b"", "not a tool latency file"),
    "alien": (lambda content: b"\x93NUMPY" + b"\0" * 500, "not a tool latency file"),
    "newer": (lambda content: content.replace(b"latency 1 ", b"latency 2 more ", 1), "has version 2"),
    "huge": (lambda content: content + b" " * MAX_FILE_BYTES, "longer than"),
    "signed nonsense": (lambda content: _sealed(b"[]"), "content cannot be taken"),
    "signed garbage": (lambda content: _sealed(b"\xff"), "content cannot be taken"),
    "signed depth": (lambda content: _sealed(b"[" * 200_000), "content cannot be taken"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_cannot_be_used_is_kept_aside_with_one_warning(change, file, caplog):
    alter, says = CHANGES[change]
    altered = alter(encode(learned()))
    file.path.write_bytes(altered)
    with pytest.raises(SealError, match=says):
        read(file.path)
    assert file.path.read_bytes() == altered, "reading changes nothing"
    assert file.load().num_observed == 0
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert says in warning.getMessage()
    assert str(file.path) in warning.getMessage()
    assert "latency.set-aside-1" in warning.getMessage()
    assert file.path.with_name("latency.set-aside-1").read_bytes() == altered
    file.save(learned())
    assert read(file.path).num_observed == 201


def test_what_was_set_aside_before_is_not_overwritten(file):
    for number in range(3):
        file.path.write_bytes(b"note %d" % number)
        file.load()
    assert names_in(file) == {f"latency.set-aside-{number}" for number in (1, 2, 3)}
    assert file.path.with_name("latency.set-aside-1").read_bytes() == b"note 0"


def test_a_file_that_cannot_be_set_aside_is_not_overwritten(file, caplog, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EACCES, "denied")

    file.path.write_bytes(b"someone's notes")
    monkeypatch.setattr(os, "rename", refuse)
    gaps = file.load()
    gaps.observe(("bash",), 1.0)
    file.save(gaps)
    assert file.path.read_bytes() == b"someone's notes"
    assert "cannot be set aside either" in caplog.text


def test_it_is_saved_when_there_is_news_and_not_too_often(file):
    clock = file._clock
    gaps = file.load()
    assert not file.is_due(gaps)
    clock.advance(61)
    assert not file.is_due(gaps), "nothing new"
    gaps.observe(("bash",), 1.0)
    assert file.is_due(gaps)
    file.write(file.take(gaps))
    gaps.observe(("bash",), 1.0)
    clock.advance(59)
    assert not file.is_due(gaps), "too soon"
    clock.advance(1)
    assert file.is_due(gaps)
    file.save(gaps)
    written = file.path.stat().st_mtime_ns
    file.save(gaps)
    assert file.path.stat().st_mtime_ns == written, "nothing new"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_at_any_step_leaves_the_old_file(step, file, monkeypatch):
    class Crashed(BaseException):
        pass

    def crash(*args):
        raise Crashed

    old = learned()
    file.save(old)
    with monkeypatch.context() as patched:
        patched.setattr(os, step, crash)
        with pytest.raises(Crashed):
            file.save(learned(num_gaps=300))
    assert read(file.path).state() == old.state()
    assert any(name.endswith(".tmp") for name in names_in(file))
    assert LatencyFile(file.path, ManualClock()).load().state() == old.state()
    assert names_in(file) == {"latency"}, "what the crash left is removed"


def test_the_content_is_on_disk_before_it_takes_the_name(file, monkeypatch):
    done = []
    for step in ("fsync", "replace"):
        original = getattr(os, step)
        monkeypatch.setattr(os, step, lambda *args, s=step, f=original: (done.append(s), f(*args))[1])
    file.save(learned())
    assert done == ["fsync", "replace", "fsync"]


def test_a_full_disk_is_told_once_and_tried_again(file, caplog, monkeypatch):
    gaps = learned()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        for _ in range(3):
            gaps.observe(("bash",), 1.0)
            file.save(gaps)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "No space left" in warnings[0].getMessage()
    gaps.observe(("bash",), 1.0)
    file.save(gaps)
    assert read(file.path).num_observed == gaps.num_observed


def test_the_file_is_bounded_whatever_the_tools_are_called():
    gaps, rng = ToolGaps(), random.Random(3)
    for number in range(40_000):
        name = f"{number % MAX_TOOLS:03d}" + "\x00" * MAX_NAME_CHARS
        gaps.observe((name,), 1e-3 * 2 ** rng.uniform(0, NUM_BUCKETS / 4), 1e9 + rng.random())
    content = encode(gaps)
    assert 100_000 < len(content) < MAX_FILE_BYTES / 4
    assert decode(content).state() == gaps.state()


def test_two_servers_that_learned_the_same_write_the_same():
    assert encode(learned()) == encode(learned())


def test_a_path_that_can_be_no_file_is_refused_at_the_start(tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(ConfigError, match="folder you can write to"):
        LatencyFile(tmp_path / "plain" / "latency", ManualClock())
    with pytest.raises(ConfigError, match="is a folder"):
        LatencyFile(tmp_path, ManualClock())
