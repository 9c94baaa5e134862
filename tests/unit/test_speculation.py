"""Drafts come when a prompt is indexed, nothing said is lost, and nobody sees what another tenant said."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from agentinfer.errors import SpeculationError
from agentinfer.spec_sam import speculation as facade
from agentinfer.spec_sam.background import BackgroundBuilder
from agentinfer.spec_sam.speculation import DraftBatch, Speculation, SpeculationSettings
from tests.drafting_builders import InlineBuilder, int32s

SECRET = list(range(1000, 1040))
WIDTH = 17


def text(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(500), k=count)


class Worker:
    """An engine that knows what each request will say: it verifies drafts against `replies`, one step at a time."""

    def __init__(self, speculation: Speculation) -> None:
        self.speculation = speculation
        self.replies: dict[str, list[int]] = {}
        self.said: dict[str, int] = {}
        self.unseen: dict[str, list[int]] = {}  # verified since the last draft

    def open(self, request_id: str, prompt: Sequence[int], reply: Sequence[int], **where: Any) -> None:
        self.speculation.open(request_id, int32s(prompt), **where)
        self.replies[request_id] = list(reply)
        self.unseen[request_id] = list(reply[:1])  # from prefill
        self.said[request_id] = len(self.unseen[request_id])

    def draft(self, *request_ids: str, max_width: int = WIDTH) -> DraftBatch:
        rows = [self.unseen[request_id] for request_id in request_ids]
        for request_id in request_ids:
            self.unseen[request_id] = []
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        tokens = int32s(token for row in rows for token in row)
        return self.speculation.draft(list(request_ids), tokens, offsets, max_width)

    def step(self, *request_ids: str) -> list[int]:
        """Drafts, verifies, and returns how many drafted tokens were accepted for each request."""
        batch = self.draft(*request_ids)
        counts = []
        for row, request_id in enumerate(request_ids):
            coming = self.replies[request_id][self.said[request_id] :]
            count = accepted(batch, row, coming)
            self.unseen[request_id] = coming[: count + 1]
            self.said[request_id] += len(self.unseen[request_id])
            counts.append(count)
        return counts

    def is_done(self, request_id: str) -> bool:
        return self.said[request_id] == len(self.replies[request_id])

    def run(self, request_id: str, *, finished: bool = True) -> int:
        """To the end of the reply: the steps it took."""
        steps = 0
        while not self.is_done(request_id):
            self.step(request_id)
            steps += 1
        self.draft(request_id)  # the last tokens
        self.speculation.close(request_id, finished=finished)
        return steps


def accepted(batch: DraftBatch, row: int, coming: Sequence[int]) -> int:
    node = 0
    for count, token in enumerate(coming):
        children = np.flatnonzero((batch.parents[row] == node) & (batch.tokens[row] == token))
        if len(children) == 0:
            return count
        node = int(children[0])
    return len(coming)


def drafted_tokens(batch: DraftBatch) -> set[int]:
    return set(batch.tokens[batch.parents >= 0].tolist())


@pytest.fixture
def builder() -> InlineBuilder:
    return InlineBuilder()


@pytest.fixture
def worker(builder: InlineBuilder) -> Worker:
    return Worker(Speculation(builder=builder))  # type: ignore[arg-type]


def log_of(worker: Worker, session: str, namespace: str = "") -> list[list[int]]:
    """The documents of the session's automaton, checked."""
    held = worker.speculation._texts.peek((namespace, session))
    assert held is not None
    held.automaton.check_integrity()
    documents: list[list[int]] = [[]]
    for token in held.automaton.tokens.tolist():
        if token < 0:
            documents.append([])
        else:
            documents[-1].append(token)
    return documents


def test_drafts_are_empty_until_the_prompt_is_indexed(worker: Worker, builder: InlineBuilder) -> None:
    phrase = text(1, 50)
    worker.open("r", phrase + phrase[:20], phrase[20:])
    batch = worker.draft("r")
    assert batch.num_nodes.tolist() == [1]
    assert batch.tokens[0].tolist() == [phrase[20]] + [0] * (WIDTH - 1)
    assert batch.parents[0].tolist() == [-1] * WIDTH
    assert batch.path_probability[0].tolist() == [1.0] + [0.0] * (WIDTH - 1)
    builder.run()
    assert worker.step("r")[0] >= 8


def test_a_short_prompt_is_ready_when_it_is_open_and_a_long_one_is_not() -> None:
    phrase = text(1, 50)
    worker = Worker(Speculation(builder=InlineBuilder(does_at_once=True)))  # type: ignore[arg-type]
    worker.open("short", phrase + phrase[:20], phrase[20:])
    worker.open("long", text(2, 9000) + phrase + phrase[:20], phrase[20:])
    assert worker.step("short")[0] >= 8
    assert worker.step("long") == [0]


@pytest.mark.parametrize("length", [40, 3000])
def test_drafts_do_not_depend_on_who_indexes(length: int) -> None:
    """The caller or the indexing thread, as long as the latter keeps up."""

    def drafts(*, does_at_once: bool) -> list[list[list[float]]]:
        worker = Worker(Speculation(builder=InlineBuilder(does_at_once=does_at_once)))  # type: ignore[arg-type]
        said, seen = text(3, length), []
        for turn in range(6):
            reply = said[10:30] + text(turn, 5)
            worker.open(f"r{turn}", said, reply, session=f"s{turn % 2}")
            worker.speculation.wait_until_ready()
            while not worker.is_done(f"r{turn}"):
                worker.step(f"r{turn}")
                seen.append([array.tolist() for array in worker.draft(f"r{turn}")])
            worker.speculation.close(f"r{turn}", finished=True)
            worker.speculation.wait_until_ready()
            said = said + reply + text(100 + turn, length // 4)
        return seen

    assert drafts(does_at_once=True) == drafts(does_at_once=False)


def test_the_root_is_the_last_verified_token_before_and_after_readiness(worker: Worker, builder: InlineBuilder) -> None:
    worker.open("r", [1, 2, 3], [])
    assert worker.draft("r").tokens[0, 0] == 3
    worker.unseen["r"] = [4, 5]
    assert worker.draft("r").tokens[0, 0] == 5
    assert worker.draft("r").tokens[0, 0] == 5  # nothing new: still the last one
    builder.run()
    assert worker.draft("r").tokens[0, 0] == 5
    worker.unseen["r"] = [6]
    assert worker.draft("r").tokens[0, 0] == 6


def test_tokens_verified_before_readiness_are_not_lost(worker: Worker, builder: InlineBuilder) -> None:
    reply = text(2, 30)
    worker.open("r", [1, 2, 3], reply, session="s")
    for _ in range(10):
        worker.step("r")
    builder.run()
    worker.run("r")
    builder.run()
    assert log_of(worker, "s") == [[1, 2, 3, *reply]]


def test_a_request_that_ends_before_it_is_indexed_is_remembered(worker: Worker, builder: InlineBuilder) -> None:
    reply = text(3, 12)
    worker.open("r", [1, 2, 3], reply, session="s")
    worker.run("r")
    builder.run()
    assert log_of(worker, "s") == [[1, 2, 3, *reply]]


def test_a_turn_adds_only_what_is_new(worker: Worker, builder: InlineBuilder) -> None:
    said: list[int] = []
    for turn in range(5):
        said += text(turn, 200)
        reply = text(100 + turn, 40)
        worker.open(f"r{turn}", said, reply, session="s")
        builder.run()
        worker.run(f"r{turn}")
        builder.run()
        said += reply
        assert worker.speculation._texts.peek(("", "s")).automaton.num_tokens == len(said)  # type: ignore[union-attr]
    assert log_of(worker, "s") == [said]


def test_an_edited_history_starts_a_document_a_little_before_the_edit(worker: Worker, builder: InlineBuilder) -> None:
    first, reply = text(1, 200), text(2, 40)
    worker.open("r0", first, reply, session="s")
    worker.run("r0")
    edited = first[:150] + text(3, 80)
    worker.open("r1", edited, [], session="s")
    builder.run()
    assert log_of(worker, "s") == [first + reply, edited[150 - 64 :]]


@pytest.mark.parametrize("num_chunks", [0, 1, 2, 3, None], ids=lambda count: f"{count} chunks")
def test_after_an_abort_the_session_goes_on_from_what_was_indexed(
    worker: Worker, builder: InlineBuilder, num_chunks: int | None
) -> None:
    """Aborted before, amid (chunks hold 1024 tokens) and after its indexing; the next turn's text is whole."""
    first, second = text(1, 10_000), text(2, 300)
    worker.open("r0", first, text(3, 9), session="s")
    builder.run(num_chunks)
    worker.step("r0")
    worker.step("r0")
    worker.speculation.close("r0", finished=False)
    worker.open("r1", first + second, [5, 6], session="s")
    builder.run()
    worker.run("r1")
    builder.run()
    documents = log_of(worker, "s")
    assert documents[-1][-302:] == [*second, 5, 6]
    held = worker.speculation._texts.peek(("", "s"))
    assert held is not None
    assert held.known[: held.length].tolist() == [*first, *second, 5, 6]
    assert sum(map(len, documents)) <= 10_000 + 9 + 64 + 302  # nothing is indexed twice but the overlap


def test_a_retracted_request_comes_back_with_its_output_as_prompt(worker: Worker, builder: InlineBuilder) -> None:
    phrase = text(1, 60)
    worker.open("r", phrase + phrase[:10], phrase[10:], session="s")
    builder.run()
    worker.step("r")
    said = phrase[10 : 10 + worker.said["r"]]
    worker.speculation.close("r", finished=False)
    worker.open("r", phrase + phrase[:10] + said, phrase[10 + len(said) :], session="s")
    builder.run()
    assert worker.step("r")[0] > 0


def test_two_requests_of_one_session_read_each_other(worker: Worker, builder: InlineBuilder) -> None:
    """A sub-agent of the same session: the second has a text of its own, and the first's as a source."""
    said = text(1, 120)
    worker.open("first", [*said, 7], text(2, 5), session="s")
    worker.open("second", [901, *said[:20]], said[20:60], session="s")
    builder.run()
    assert worker.step("second")[0] > 0
    worker.run("second")
    worker.run("first")
    builder.run()
    assert log_of(worker, "s") == [[*said, 7, *text(2, 5)]]


def test_the_parents_text_is_a_source(worker: Worker, builder: InlineBuilder) -> None:
    said = text(1, 120)
    worker.open("lead", said, [], session="lead")
    builder.run()
    for parent, finds in ((None, False), ("nobody", False), ("lead", True)):
        worker.open(f"of {parent}", [901, *said[:20]], said[20:60], session=f"of {parent}", parent=parent)
        builder.run()
        assert (worker.step(f"of {parent}")[0] > 0) is finds


@pytest.mark.parametrize("secret_in", ["finished turn", "running session", "parent of the same name"])
def test_a_secret_is_never_drafted_in_another_namespace(worker: Worker, builder: InlineBuilder, secret_in: str) -> None:
    opening = text(1, 30)
    worker.open("a", opening + SECRET, SECRET, session="s", namespace="A")
    builder.run()
    if secret_in == "finished turn":
        worker.run("a")
    builder.run()
    for namespace, finds in (("B", False), ("A", True)):
        where = {"session": f"new in {namespace}", "parent": "s", "namespace": namespace}
        worker.open(namespace, [*opening, *SECRET[:5]], SECRET[5:], **where)
        builder.run()
        seen: set[int] = set()
        while not worker.is_done(namespace):
            batch = worker.draft(namespace)
            seen |= drafted_tokens(batch) & set(SECRET)
            worker.unseen[namespace] = worker.replies[namespace][worker.said[namespace] :][:1]
            worker.said[namespace] += 1
        assert bool(seen) is finds
        worker.speculation.close(namespace, finished=True)


def test_finished_turns_are_everybodys_memory_in_the_namespace(worker: Worker, builder: InlineBuilder) -> None:
    phrase = text(1, 80)
    steps = []
    for number in range(6):
        worker.open(f"r{number}", [900 + number], phrase)
        builder.run()
        steps.append(worker.run(f"r{number}"))
        builder.run()
    assert steps[0] > 60
    assert max(steps[3:]) < 15


def test_an_aborted_reply_is_not_remembered(worker: Worker, builder: InlineBuilder) -> None:
    phrase = text(1, 80)
    worker.open("r", [900], phrase)
    builder.run()
    worker.run("r", finished=False)
    worker.open("other", [901], phrase)
    builder.run()
    assert worker.run("other") == len(phrase) - 1


@pytest.mark.parametrize("chain", [True, False])
def test_a_chain_has_one_child_a_node(builder: InlineBuilder, chain: bool) -> None:
    worker = Worker(Speculation(SpeculationSettings(chain=chain), builder=builder))  # type: ignore[arg-type]
    worker.open("r", [1, 2, 3, 1, 2, 4, 1, 2, 5, 1, 2], [])
    builder.run()
    batch = worker.draft("r")
    count = int(batch.num_nodes[0])
    is_chain = batch.parents[0, :count].tolist() == list(range(-1, count - 1))
    assert is_chain is chain


def test_rows_that_are_ready_draft_beside_those_that_are_not(worker: Worker, builder: InlineBuilder) -> None:
    phrase = text(1, 50)
    worker.open("ready", phrase + phrase[:20], phrase[20:])
    builder.run()
    worker.open("late", phrase + phrase[:20], phrase[20:])
    alone = Worker(Speculation(builder=InlineBuilder()))  # type: ignore[arg-type]
    alone.open("ready", phrase + phrase[:20], phrase[20:])
    alone.speculation.wait_until_ready()
    expected = [array.copy() for array in alone.draft("ready")]
    batch = worker.draft("late", "ready")
    assert batch.num_nodes.tolist() == [1, int(expected[3][0])]
    for array, row in zip(batch[:3], expected[:3], strict=True):
        assert array[1].tolist() == row[0].tolist()


def test_a_huge_prompt_is_indexed_in_chunks_and_drafting_never_waits_for_them(
    worker: Worker, builder: InlineBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(facade, "draft_batch", lambda streams, *rest: calls.append(len(streams)))
    worker.open("r", text(1, 200_000), text(2, 100))
    num_chunks = 0
    while builder.run(1):
        num_chunks += 1
        if worker.speculation._requests["r"].indexed is None:
            assert worker.draft("r").num_nodes.tolist() == [1]
    assert calls == []  # so no automaton was asked while it was written
    assert num_chunks >= 200_000 // 1024 + 2
    worker.draft("r")
    assert calls == [1]


def test_a_step_before_readiness_does_not_read_all_that_waits(worker: Worker) -> None:
    """Else a long reply behind an index that never comes would take time with the square of its length."""

    class Unread(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("all that waits was read")

    worker.open("r", [1], [])
    worker.speculation._requests["r"].waiting = Unread([int32s([2, 3])])
    batch = worker.speculation.draft(["r"], int32s([7]), np.array([0, 1]), 2)
    assert batch.tokens[0, 0] == 7
    assert len(worker.speculation._requests["r"].waiting) == 2


def test_unknown_and_duplicate_requests_are_refused_and_change_nothing(worker: Worker, builder: InlineBuilder) -> None:
    speculation = worker.speculation
    worker.open("r", [1, 2, 3], [4])
    with pytest.raises(SpeculationError, match="request 'r' is open already; close it"):
        speculation.open("r", int32s([1]))
    with pytest.raises(SpeculationError, match="request 'x' has no prompt"):
        speculation.open("x", int32s([]))
    with pytest.raises(SpeculationError, match="request 'x' is not open; open it with its prompt first"):
        speculation.draft(["r", "x"], int32s([4, 5]), np.array([0, 1, 2]), 4)
    with pytest.raises(SpeculationError, match="request 'x' is not open, so it cannot be closed"):
        speculation.close("x", finished=True)
    with pytest.raises(SpeculationError, match="max_width is 0; expected at least 1"):
        speculation.draft(["r"], int32s([4]), np.array([0, 1]), 0)
    assert speculation.num_open == 1
    builder.run()
    assert worker.draft("r").tokens[0, 0] == 4
    speculation.close("r", finished=True)
    with pytest.raises(SpeculationError, match="'r' is not open"):
        speculation.close("r", finished=True)
    assert speculation.num_open == 0


def test_no_requests_make_an_empty_batch(worker: Worker) -> None:
    batch = worker.speculation.draft([], int32s([]), np.zeros(1, np.int64), 4)
    assert batch.tokens.shape == (0, 4)
    assert batch.num_nodes.shape == (0,)


def test_the_callers_prompt_may_be_reused(worker: Worker, builder: InlineBuilder) -> None:
    buffer = int32s([1, 2, 3])
    worker.speculation.open("r", buffer, session="s")
    buffer[:] = 9
    builder.run()
    assert log_of(worker, "s") == [[1, 2, 3]]


def test_a_full_queue_costs_drafts_and_nothing_else(worker: Worker, builder: InlineBuilder) -> None:
    """Refused when opened, and when closed: the turns after that are whole."""
    first, reply = text(1, 50), text(2, 20)
    builder.is_full = True
    worker.open("r0", first, reply, session="s")
    worker.run("r0")
    builder.is_full = False
    worker.open("r1", first + reply, [1, 2, 3], session="s")
    builder.run()
    builder.is_full = True
    worker.run("r1")
    builder.is_full = False
    worker.open("r2", [*first, *reply, 1, 2, 3, 4, 5], [6], session="s")
    builder.run()
    worker.run("r2")
    builder.run()
    documents = log_of(worker, "s")
    whole = [*first, *reply, 1, 2, 3, 4, 5, 6]
    assert documents[-1] == whole[-len(documents[-1]) :]
    held = worker.speculation._texts.peek(("", "s"))
    assert held is not None
    assert held.known[: held.length].tolist() == whole


def test_a_prompt_that_cannot_be_indexed_decodes_without_drafts(caplog: pytest.LogCaptureFixture) -> None:
    builder = BackgroundBuilder(niceness=0)
    worker = Worker(Speculation(builder=builder))
    with caplog.at_level(logging.CRITICAL):
        worker.open("bad", [1, -5, 1], [1, 2, 3], session="s")
        worker.open("good", [1, 2, 1, 2, 1], [2, 1, 2])
        assert worker.speculation.wait_until_ready(10)
        assert worker.run("bad") == 2  # a token a step
        assert worker.step("good")[0] > 0
        assert worker.speculation.wait_until_ready(10)
    builder.stop()


def test_texts_of_sessions_that_end_leave_when_they_hold_too_much(builder: InlineBuilder) -> None:
    """Sessions of a single turn each, as most are: the latest stay, and what is counted is what is held."""
    settings = SpeculationSettings(session_bytes=400_000)
    worker = Worker(Speculation(settings, builder=builder))  # type: ignore[arg-type]
    for number in range(40):
        worker.open(f"r{number}", text(number, 1000), text(number, 10), session=f"s{number}")
        builder.run()
        worker.run(f"r{number}")
        builder.run()
        worker.speculation._texts.check_integrity()
    held = [number for number in range(40) if worker.speculation._texts.peek(("", f"s{number}")) is not None]
    assert held == list(range(40 - len(held), 40))
    assert 3 <= len(held) <= 20


def test_threads_and_requests_in_any_order_leave_every_text_whole() -> None:
    """The real indexing thread beside a scheduler that opens, drafts, aborts and closes, while others read."""
    rng = random.Random(20261123)
    builder = BackgroundBuilder(niceness=0)
    speculation = Speculation(SpeculationSettings(memory_bytes=200_000), builder=builder)
    worker = Worker(speculation)
    stop = threading.Event()
    wrong: list[BaseException] = []

    def watch() -> None:
        try:
            while not stop.is_set():
                assert speculation.memory_bytes() >= 0
        except BaseException as error:
            wrong.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    known: dict[str, list[int]] = {f"s{number}": text(number, 300) for number in range(6)}
    running: dict[str, str] = {}
    for step in range(1500):
        session = rng.choice(list(known))
        request = running.get(session)
        if request is None:
            known[session] += text(step, rng.randrange(1, 400))
            running[session] = request = f"{session}-{step}"
            reply = known[session][5:25] if rng.random() < 0.7 else text(-step, 20)
            worker.open(request, known[session], reply, session=session, namespace=f"n{step % 9}", parent="s0")
        elif rng.random() < 0.1:
            speculation.close(running.pop(session), finished=False)
        elif worker.is_done(request):
            worker.draft(request)
            known[session] += worker.replies[request]
            speculation.close(running.pop(session), finished=True)
        else:
            worker.step(*[each for each in running.values() if not worker.is_done(each)])
    assert speculation.wait_until_ready(60)
    stop.set()
    watcher.join()
    builder.check_integrity()
    assert builder.counts.get("failed", 0) == 0
    builder.stop()
    assert wrong == []
    speculation._texts.check_integrity()
    for held in speculation._texts._texts.values():
        held.automaton.check_integrity()
