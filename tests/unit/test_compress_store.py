"""The store of compositions: found by content, bounded, and whole or absent after any crash."""

from __future__ import annotations

import logging

import pytest

from agentinfer.compress.composition import Composition, compose
from agentinfer.compress.composition_file import MAGIC, VERSION, decode, encode
from agentinfer.compress.plan import make_plan
from agentinfer.compress.sizes import Sizes
from agentinfer.compress.store import CompositionStore
from agentinfer.errors import ConfigError
from agentinfer.sealed_file import SealError, unseal
from tests.agent_sessions import chat, user
from tests.compress_builders import SMALL, history, messages_of, note_for


def composition(num_steps: int = 6, task: str | None = None) -> Composition:
    bodies = history(num_steps)
    if task is not None:
        bodies[1] = user(task)
    messages = messages_of(bodies)
    plan = make_plan(messages, Sizes(), SMALL)
    return compose(messages, plan, note_for(plan.taken), None, SMALL)


def chain(num_steps: int, task: str | None = None) -> tuple[bytes, ...]:
    bodies = history(num_steps)
    if task is not None:
        bodies[1] = user(task)
    return chat(*bodies).chain


def test_the_composition_of_the_longest_beginning_is_found():
    store = CompositionStore(1 << 20)
    short, long = composition(4), composition(8)
    store.put("s", short)
    store.put("s", long)
    assert store.find(chain(20)) is long
    assert store.find(chain(5)) is short
    assert store.find(chain(2)) is None
    assert store.find(chain(20, "Another task.")) is None
    assert store.latest("s") is long
    store.check_integrity()


def test_the_least_recently_used_go_when_the_budget_is_full():
    each = [composition(6, f"Task {number}.") for number in range(3)]
    store = CompositionStore(int(2.5 * len(encode("s0", each[0]))))
    store.put("s0", each[0])
    store.put("s1", each[1])
    assert store.find(chain(6, "Task 0.")) is each[0]
    store.put("s2", each[2])
    assert store.latest("s1") is None
    assert store.find(chain(6, "Task 1.")) is None
    assert store.latest("s0") is each[0]
    assert store.latest("s2") is each[2]
    store.check_integrity()


def test_a_forgotten_session_leaves_nothing(tmp_path):
    store = CompositionStore(1 << 20, tmp_path)
    store.put("s", composition(4))
    store.put("s", composition(8))
    store.put("other", composition(4, "Other."))
    store.forget_session("s")
    assert (len(store), len(list(tmp_path.iterdir()))) == (1, 1)
    assert store.find(chain(20)) is None
    store.check_integrity()


def test_a_restarted_server_knows_what_was_put(tmp_path):
    store = CompositionStore(1 << 20, tmp_path / "deep")
    store.put("s", composition(4))
    store.put("s", composition(8))
    again = CompositionStore(1 << 20, tmp_path / "deep")
    assert again.find(chain(20)) == composition(8)
    assert again.latest("s") == composition(8)
    assert again.size_bytes == store.size_bytes
    again.check_integrity()


def test_every_cut_and_every_flipped_byte_is_noticed():
    content = encode("s", composition(4))
    for position in range(len(content)):
        with pytest.raises(SealError):
            decode(unseal(MAGIC, VERSION, content[:position]))
        flipped = bytearray(content)
        flipped[position] ^= 1
        with pytest.raises(SealError):
            decode(unseal(MAGIC, VERSION, bytes(flipped)))


def test_a_damaged_file_is_set_aside_and_the_others_are_kept(tmp_path, caplog):
    store = CompositionStore(1 << 20, tmp_path)
    store.put("s", composition(4))
    store.put("t", composition(4, "Other."))
    damaged = tmp_path / f"{composition(4).digest.hex()}.composition"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (tmp_path / f"{'ab' * 16}.composition.123.tmp").write_bytes(b"left by a crash")
    with caplog.at_level(logging.WARNING):
        again = CompositionStore(1 << 20, tmp_path)
    assert (again.latest("s"), again.latest("t")) == (None, composition(4, "Other."))
    assert "damaged" in caplog.text
    assert len(caplog.records) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".composition", ".damaged"]


def test_a_folder_that_cannot_be_written_costs_a_warning_and_no_composition(tmp_path, caplog, monkeypatch):
    store = CompositionStore(1 << 20, tmp_path)

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agentinfer.compress.store.replace_file", refuse)
    store.put("s", composition(4))
    store.put("s", composition(8))
    assert store.find(chain(20)) == composition(8)
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ConfigError, match="name a folder"):
        CompositionStore(1 << 20, tmp_path / "taken")
