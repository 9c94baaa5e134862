"""Whatever the order of opening, drafting, indexing and closing: texts are what was said, and drafts are trees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from agentinfer.spec_sam.speculation import Speculation, SpeculationSettings
from agentinfer.spec_sam.texts import OVERLAP, SessionText
from tests.drafting_builders import Draft, InlineBuilder, int32s

SESSIONS = ("s0", "s1", None)
SHARED = 3  # of the letters, both namespaces say these; a token of the others tells whose it is
NAMESPACES = {"": 0, "tenant": 100}
letters = st.integers(0, 5)
pieces = st.lists(letters, max_size=90)


def said_in(namespace: str, word: list[int]) -> list[int]:
    return [letter if letter < SHARED else NAMESPACES[namespace] + letter for letter in word]


@dataclass
class Said:
    """The model of one session: what it will be expected to know."""

    history: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Running:
    name: str
    namespace: str
    session: str | None
    prompt: list[int]
    text: SessionText
    is_refused: bool
    output: list[int] = field(default_factory=list)


class SpeculationMachine(RuleBasedStateMachine):
    requests: Any = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.builder = InlineBuilder()
        self.speculation = Speculation(
            SpeculationSettings(session_bytes=20_000, memory_bytes=40_000, min_path_probability=0.01),
            builder=self.builder,  # type: ignore[arg-type]
        )
        self.running: list[Running] = []
        self.said: dict[tuple[str, str | None], Said] = {}
        self.expected: dict[SessionText, list[int]] = {}  # what a text knows for certain once the queue is worked off
        self.num_opened = 0

    @rule(
        target=requests,
        namespace=st.sampled_from(sorted(NAMESPACES)),
        session=st.sampled_from(SESSIONS),
        parent=st.sampled_from(["s0", "unknown", None]),
        more=pieces,
        kept=st.sampled_from([1.0, 1.0, 1.0, 0.5, 0.0]),
    )
    def open(self, namespace: str, session: str | None, parent: str | None, more: list[int], kept: float) -> Running:
        """The session's history, all or a part of it, and something new."""
        said = self.said.setdefault((namespace, session), Said()) if session else Said()
        history = said.history[: int(kept * len(said.history))]
        self.num_opened += 1
        return self.enter(f"r{self.num_opened}", history + said_in(namespace, more or [0]), namespace, session, parent)

    def enter(
        self, name: str, prompt: list[int], namespace: str, session: str | None, parent: str | None = None
    ) -> Running:
        self.speculation.open(name, int32s(prompt), session=session, parent=parent, namespace=namespace)
        text = self.speculation._requests[name].text
        self.expected.pop(text, None)
        request = Running(name, namespace, session, prompt, text, self.builder.is_full)
        self.running.append(request)
        return request

    @rule(num_chunks=st.sampled_from([1, 2, 5, None]))
    def index(self, num_chunks: int | None) -> None:
        self.builder.run(num_chunks)

    @rule(does_at_once=st.booleans())
    def run_at_once(self, does_at_once: bool) -> None:
        self.builder.does_at_once = does_at_once

    @rule(is_full=st.booleans())
    def fill_queue(self, is_full: bool) -> None:
        self.builder.is_full = is_full

    @rule(data=st.data(), num_chunks=st.sampled_from([None, 0, 3]), max_width=st.sampled_from([9, 2, 1]))
    def draft(self, data: Any, num_chunks: int | None, max_width: int) -> None:
        self.builder.run(num_chunks)
        chosen = [request for request in self.running if data.draw(st.integers(0, 3))]
        rows = []
        for request in chosen:
            row = said_in(request.namespace, data.draw(st.lists(letters, max_size=4)))
            request.output += row
            rows.append(row)
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        tokens = int32s(token for row in rows for token in row)
        batch = self.speculation.draft([request.name for request in chosen], tokens, offsets, max_width)
        for row_index, request in enumerate(chosen):
            count = int(batch.num_nodes[row_index])
            drafted = Draft(*(array[row_index, :count].tolist() for array in batch[:3]))
            assert drafted.tokens[0] == (request.prompt + request.output)[-1]
            assert 1 <= count <= max_width
            assert drafted.parents[0] == -1
            assert all(0 <= parent < node for node, parent in enumerate(drafted.parents) if node)
            assert drafted.probability == sorted(drafted.probability, reverse=True)
            others = {0, 100} - {NAMESPACES[request.namespace]}
            assert all(token < SHARED or token // 100 * 100 not in others for token in drafted.tokens)
            assert (batch.parents[row_index, count:] == -1).all()

    @rule(request=consumes(requests), finished=st.booleans())
    def close(self, request: Running, finished: bool) -> None:
        self.speculation.close(request.name, finished=finished)
        self.running.remove(request)
        if finished and not self.builder.is_full and not request.is_refused:
            self.expected[request.text] = request.prompt + request.output
        if finished and request.session is not None:
            self.said[request.namespace, request.session].history = request.prompt + request.output

    @rule(target=requests, request=consumes(requests))
    def retract(self, request: Running) -> Running:
        """The engine opens it again with all its output as prompt."""
        prompt = request.prompt + request.output
        self.speculation.close(request.name, finished=False)
        self.running.remove(request)
        return self.enter(request.name, prompt, request.namespace, request.session)

    @rule()
    def texts_hold_what_was_said(self) -> None:
        """With the queue worked off: each stream's document ends with its prompt and output, up to the overlap."""
        self.builder.run()
        for request in self.running:
            held = self.speculation._requests[request.name]
            if held.indexed is None:
                continue  # refused
            waiting = [token for piece in held.waiting for token in piece.tolist()]
            whole = request.prompt + request.output
            whole = whole[: len(whole) - len(waiting)]
            document = last_document(request.text)
            assert whole[-len(document) :] == document[-len(whole) :]
            assert len(document) >= min(len(whole), OVERLAP)
            assert request.text.known[: request.text.length].tolist() == request.prompt
        for text in self.speculation._texts._texts.values():
            text.automaton.check_integrity()
            if text in self.expected:
                known = self.expected[text]
                assert text.known[: text.length].tolist() == known
                document = last_document(text)
                assert known[-len(document) :] == document
                assert not text.is_broken

    @invariant()
    def agrees(self) -> None:
        self.speculation._texts.check_integrity()
        assert self.speculation.num_open == len(self.running)
        readers = [text.reader for text in self.speculation._texts._texts.values() if text.reader is not None]
        assert set(readers) <= {request.name for request in self.running}

    def teardown(self) -> None:
        self.texts_hold_what_was_said()


def last_document(text: SessionText) -> list[int]:
    tokens: list[int] = text.automaton.tokens.tolist()
    return tokens[len(tokens) - 1 - tokens[::-1].index(-1) + 1 :] if -1 in tokens else tokens


SpeculationMachine.TestCase.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)
test_speculation_machine = SpeculationMachine.TestCase
