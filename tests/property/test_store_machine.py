"""Any order of adding, crediting, evicting, reopening and crashing leaves the store equal to a plain dict."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentinfer.clock import ManualClock
from agentinfer.spec_sam.store import ContextStore, StoreOptions, verify_store
from agentinfer.spec_sam.store.files import Files

TOKENIZER = "tokenizer.json:1"
START_S = 1_700_000_000.0
NAMESPACES = st.sampled_from(["red", "blue"])
SESSIONS = st.sampled_from(["s", "t"])
TOKENS = st.lists(st.integers(0, 3), max_size=60)


class NoSync(Files):
    def sync(self, path):
        pass


@dataclass
class Kept:
    namespace: str
    session: str
    text: list[int]
    response: list[int]
    accepted: float = 0.0


@dataclass
class Model:
    contexts: dict[int, Kept] = field(default_factory=dict)
    # Of a session, the text of the latest turn: what its client sends again.
    history: dict[tuple[str, str], list[int]] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    """The bound is far away: what goes, goes because a rule says so. `make_room` has a test of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.model = Model()
        self.clock = ManualClock(START_S)
        self.turn = 0

    @initialize(segment_bytes=st.sampled_from([1024, 1 << 16]))
    def create(self, segment_bytes):
        self.options = StoreOptions(segment_bytes=segment_bytes, grace_s=0, half_life_s=1e12)
        self.open()
        self.reader = ContextStore(self.path, None, read_only=True, clock=self.clock)

    def open(self):
        self.store = ContextStore(self.path, TOKENIZER, options=self.options, clock=self.clock, files=NoSync())

    @rule(namespace=NAMESPACES, session=SESSIONS, new=TOKENS, response=TOKENS, kept=st.floats(0, 1))
    def add(self, namespace, session, new, response, kept):
        """A turn whose prompt goes on after part (mostly all) of what its session said before."""
        self.clock.advance(0.001)
        before = self.model.history.get((namespace, session), [])
        before = before[: int(len(before) * min(1.0, 2 * kept))]
        prompt = before + new
        self.turn += 1
        text = prompt + response
        found = self.store.add(namespace, session, self.turn, prompt, response)
        if not text:
            assert found is None
            return
        assert found is not None
        if found in self.model.contexts:
            assert self.model.contexts[found].text == text, "another text was taken for this one"
        else:
            self.model.contexts[found] = Kept(namespace, session, text, response)
        self.model.history[namespace, session] = text

    @precondition(lambda self: self.model.contexts)
    @rule(data=st.data(), accepted=st.integers(0, 100))
    def credit(self, data, accepted):
        chosen = data.draw(st.sampled_from(sorted(self.model.contexts)))
        self.store.credit(chosen, accepted)
        self.model.contexts[chosen].accepted += accepted

    @rule(max_bytes=st.integers(0, 6000), namespace=st.none() | NAMESPACES)
    def evict(self, max_bytes, namespace):
        if namespace is not None and namespace not in self.store.namespaces:
            return
        sizes = {c.id: c.size_bytes for c in self.store.contexts()}
        value = {i: kept.accepted / sizes[i] for i, kept in self.model.contexts.items()}
        gone = [c.id for c in self.store.evict(max_bytes, namespace=namespace)]
        left = [i for i, kept in self.model.contexts.items() if i not in gone and namespace in (None, kept.namespace)]
        for context_id in gone:
            assert namespace in (None, self.model.contexts.pop(context_id).namespace)
        if gone and left:
            # Half-lives are long, so the plain sums order them; rounding may turn equal ones around.
            assert max(value[i] for i in gone) <= min(value[i] for i in left) * (1 + 1e-6) + 1e-12

    @rule(is_crash=st.booleans())
    def reopen(self, is_crash):
        if is_crash:
            self.store.flush()  # credit is saved with the next record; without this it would be lost, as documented
            self.store.abandon()
        else:
            self.store.close()
        self.open()

    @precondition(lambda self: self.model.contexts)
    @rule(cut=st.integers(1, 20))
    def crash_while_adding(self, cut):
        """The last record is cut short: it is as if the add had not happened."""
        self.store.flush()
        before = {path: path.stat().st_size for path in self.path.glob("*.segment")}
        self.store.add_new("red", "torn", 0, [1] * 10, 3)
        self.store.abandon()
        for path in self.path.glob("*.segment"):
            size = path.stat().st_size
            if path not in before:
                path.unlink()  # a new segment has its name only once it is whole: cut back to before that
            elif size > before[path]:
                with path.open("r+b") as file:
                    file.truncate(max(before[path], size - cut))
        self.open()

    @rule()
    def build_the_indexes(self):
        for namespace in self.store.namespaces:
            self.store.retrieve(namespace, [0, 1, 2], 1)

    @rule(namespace=NAMESPACES, query=TOKENS, session=st.none() | SESSIONS)
    def retrieve(self, namespace, query, session):
        hits = self.store.retrieve(namespace, query, 3, exclude_session=session)
        assert [hit.similarity for hit in hits] == sorted((hit.similarity for hit in hits), reverse=True)
        for hit in hits:
            kept = self.model.contexts[hit.context_id]
            assert kept.namespace == namespace
            assert kept.session == hit.session != session
            assert 0 < hit.similarity <= 1
            assert hit.tokens.tolist()[hit.response_start :] == kept.response

    @rule()
    def a_reader_sees_the_same(self):
        self.reader.refresh()
        assert {c.id: self.reader.tokens(c.id).tolist() for c in self.reader.contexts()} == {
            c.id: self.store.tokens(c.id).tolist() for c in self.store.contexts()
        }
        self.reader.check_integrity()

    @invariant()
    def agrees(self):
        if not hasattr(self, "store"):
            return
        self.store.check_integrity()
        assert {c.id for c in self.store.contexts()} == self.model.contexts.keys()
        for context in self.store.contexts():
            kept = self.model.contexts[context.id]
            text = self.store.text(context.id).tolist()
            assert text == kept.text[len(kept.text) - len(text) :], f"context {context.id}: text"
            assert len(text) >= context.num_tokens
            assert text[len(text) - len(kept.response) :] == kept.response
            assert (context.namespace, context.session) == (kept.namespace, kept.session)
            assert self.store.usefulness(context.id) == pytest.approx(kept.accepted, rel=1e-6)

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            assert not verify_store(self.path).damage
        shutil.rmtree(self.path)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
