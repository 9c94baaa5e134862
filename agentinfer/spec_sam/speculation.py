"""What an engine's worker talks to: a request enters, each step passes on verified tokens and takes drafts, it leaves.

Three sources propose: the session's own text (its prompt included), its parent's, and what all sessions of the
namespace have said in finished turns. Prompts and finished turns are indexed by a background thread, or at once where
they are short; a request whose prompt is not ready yet decodes plainly, so the first token never waits for it (paper
section 4: with an index built synchronously it came five times later).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from agentinfer.errors import SpeculationError
from agentinfer.spec_sam.backend import DraftModel, DraftRows, DraftStream, draft_batch
from agentinfer.spec_sam.background import BackgroundBuilder, Chunk, Job
from agentinfer.spec_sam.contexts import Contexts, Turn
from agentinfer.spec_sam.drafts import DraftBatch, SpeculationSettings
from agentinfer.spec_sam.learned import load_learned, save_learned
from agentinfer.spec_sam.memory import Generation
from agentinfer.spec_sam.store import ContextStore
from agentinfer.spec_sam.texts import OVERLAP, SessionText, SessionTexts

Tokens = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]

_RELATED: Final = 1  # kinds of sources, as in csrc/draft_model.h
_MEMORY: Final = 2
_RETRIEVED: Final = 3
_MAX_WORTH: Final = 0.5
_SAVE_EVERY: Final = 64  # finished turns
_SHORT: Final = 4096  # tokens: a turn that adds no more takes less than half a millisecond to index
_AT_ONCE: Final = 8  # chunks of a short turn


@dataclass(slots=True)
class _Request:
    namespace: str
    session: str | None
    prompt: Tokens
    text: SessionText
    job: Job | None = None
    indexed: DraftStream | None = None  # set by the indexing thread: the prompt is ready
    waiting: list[Tokens] = field(default_factory=list)  # verified before the stream took in what came meanwhile
    sources: list[Generation | None] = field(default_factory=list)  # the stream's, by index


@dataclass(slots=True)
class _Composition:
    """Whose step it is, looked up once for as long as they stay the same."""

    request_ids: list[str]
    max_width: int
    streams: list[DraftStream] | None  # None where a prompt is not ready
    batch: DraftBatch
    rows: DraftRows


class Speculation:
    """For one thread, the scheduler's. Raises SpeculationError for a request it does not know."""

    def __init__(
        self,
        settings: SpeculationSettings | None = None,
        *,
        store: ContextStore | None = None,
        builder: BackgroundBuilder | None = None,
    ) -> None:
        self._settings = settings = settings or SpeculationSettings()
        self._worth = self._least_worth = settings.min_path_probability
        self._mean_drafted = settings.mean_drafted
        self._builder = builder or BackgroundBuilder()
        self._model = DraftModel(list(settings.stop_tokens))
        self._texts = SessionTexts(settings.session_bytes, settings.max_match)
        self._contexts = Contexts(
            self._builder, memory_bytes=settings.memory_bytes, max_match=settings.max_match, store=store
        )
        self._num_at_once = 0 if store is not None else _AT_ONCE  # a store may wait for the disk
        # A store of this process's own holds what was learned as well; a read-only one is somebody else's.
        self._learned = store.path if store is not None and not store.read_only else None
        if store is not None:
            load_learned(self._model, store.path)
        self._num_finished = 0
        self._requests: dict[str, _Request] = {}
        self._streams: dict[str, DraftStream] = {}  # of requests that are indexed and wait for nothing
        self._batches: dict[tuple[int, int], tuple[DraftBatch, DraftRows]] = {}
        self._composition: _Composition | None = None  # the last batch's, where all its prompts were ready
        self._max_children = int(settings.chain)

    def open(
        self,
        request_id: str,
        prompt: Tokens,
        *,
        session: str | None = None,
        parent: str | None = None,
        namespace: str = "",
    ) -> None:
        """Enters a request. Its prompt, not empty, is indexed behind its session's earlier turns, then drafts begin."""
        if request_id in self._requests:
            raise SpeculationError(f"request {request_id!r} is open already; close it before it is opened again")
        if len(prompt) == 0:
            raise SpeculationError(f"request {request_id!r} has no prompt; a stream needs a token to start from")
        key = _key(namespace, session)
        text = self._texts.borrow(key, request_id)
        own_prompt = np.array(prompt, np.int32)  # read in the background, when the caller's may have changed
        request = _Request(namespace, session, own_prompt, text)
        related = self._texts.peek((namespace, parent)) if parent is not None else None
        if related is None and key is not None:
            related = self._texts.peek(key)  # where another request of the session has its text
        self._requests[request_id] = request
        is_short = len(own_prompt) - text.length <= _SHORT
        request.job = self._builder.submit(
            text, self._index(request, related), at_once=self._num_at_once if is_short else 0
        )
        if request.indexed is not None:
            self._streams[request_id] = request.indexed

    def draft(self, request_ids: Sequence[str], new_tokens: Tokens, offsets: Offsets, max_width: int) -> DraftBatch:
        """Takes in new_tokens[offsets[i]:offsets[i + 1]], verified since the last call for request i (the first token
        of its output included), and drafts up to `max_width` nodes for each, the root counted."""
        if max_width < 1:
            raise SpeculationError(f"max_width is {max_width}; expected at least 1, the root")
        now = self._composition
        if now is None or now.max_width != max_width or now.request_ids != request_ids:
            now = self._compose(request_ids, max_width)
        if now.streams is None:
            self._draft_some(request_ids, new_tokens, offsets, now.batch)
        else:
            self._draft(now.streams, new_tokens, offsets, now.rows, max_width)
        return now.batch

    def close(self, request_id: str, *, finished: bool) -> None:
        """The request left. A finished one is remembered, by its session and its namespace; any other only leaves."""
        self._streams.pop(request_id, None)
        self._composition = None
        request = self._requests.pop(request_id, None)
        if request is None:
            raise SpeculationError(f"request {request_id!r} is not open, so it cannot be closed")
        assert request.job is not None
        job = request.job
        if finished:
            chunks = self._remember(request, request_id)
            job = self._builder.submit(request.text, chunks, at_once=self._num_at_once)
            self._num_finished += 1
            if self._learned is not None and self._num_finished % _SAVE_EVERY == 0:
                self._builder.submit(self._model, iter([self.save_learned]))
        else:
            job.cancel()
        self._texts.give_back(_key(request.namespace, request.session), request.text, job)

    def wait_until_ready(self, timeout_s: float | None = None) -> bool:
        """Waits for the background thread; for tests and offline measurement."""
        return self._builder.drain(timeout_s)

    def save_learned(self) -> None:
        """Keeps what was learned beside the store; without one, or with a read-only one, nothing."""
        if self._learned is not None:
            save_learned(self._model, self._learned)

    @property
    def num_open(self) -> int:
        return len(self._requests)

    def memory_bytes(self) -> int:
        """What the texts of sessions and the memories of namespaces hold."""
        return self._texts.num_bytes + self._contexts.memory_bytes()

    def _index(self, request: _Request, related: SessionText | None) -> Iterator[Chunk]:
        """At once or in the indexing thread: the prompt, then the stream that drafts behind it, then what the store
        knows."""
        yield from request.text.chunks(request.prompt)
        yield lambda: self._start_stream(request, related)
        if self._contexts.has_store:
            yield lambda: self._add_retrieved(request)

    def _start_stream(self, request: _Request, related: SessionText | None) -> None:
        stream = DraftStream(self._model, request.text.automaton)
        stream.seek(request.prompt[-OVERLAP:])
        request.sources = [None]
        if related is not None and related is not request.text:
            stream.add_source(related.automaton, _RELATED)
            request.sources.append(None)
        for generation in self._contexts.memory(request.namespace).generations:
            stream.add_source(generation.automaton, _MEMORY)
            request.sources.append(generation)
        request.text.is_broken = True
        request.indexed = stream

    def _add_retrieved(self, request: _Request) -> None:
        found = self._contexts.retrieve(request.namespace, request.session, request.prompt)
        if found is not None and request.indexed is not None:
            generation, similarity = found
            request.indexed.add_source(generation.automaton, _RETRIEVED, similarity)
            request.sources.append(generation)

    def _remember(self, request: _Request, request_id: str) -> Iterator[Chunk]:
        """Behind the request's own indexing: the turn for the session, and for everybody."""
        if request.indexed is None:  # its indexing was refused or failed, so the text does not hold the turn
            return
        outputs: list[Tokens] = []
        yield lambda: outputs.append(request.text.finish(request.waiting))
        if self._contexts.has_store:
            yield lambda: self._contexts.credit(request.sources, cast(DraftStream, request.indexed).take_credits())
        text = request.text
        yield from self._contexts.remember(
            Turn(
                request.namespace,
                request.session or request_id,
                text.num_turns,
                request.prompt,
                outputs[0],
                text.num_shared,
            )
        )

    def _compose(self, request_ids: Sequence[str], max_width: int) -> _Composition:
        is_ready = all(request_id in self._streams for request_id in request_ids)
        streams = [self._streams[request_id] for request_id in request_ids] if is_ready else None
        shape = len(request_ids), max_width
        batch, rows = self._batches.get(shape) or self._new_batch(*shape)
        made = _Composition(list(request_ids), max_width, streams, batch, rows)
        self._composition = made if is_ready else None
        return made

    def _draft(
        self, streams: Sequence[DraftStream], tokens: Tokens, offsets: Offsets, rows: DraftRows, max_width: int
    ) -> None:
        num_drafted = draft_batch(streams, tokens, offsets, rows, self._max_children, self._worth)
        aim = self._mean_drafted
        if aim is not None and max_width > 1 and streams:
            worth = self._worth * (1 + 0.01 * (num_drafted / len(streams) / aim - 1))
            if worth < self._least_worth:
                worth = self._least_worth
            self._worth = worth if worth < _MAX_WORTH else _MAX_WORTH

    def _draft_some(self, request_ids: Sequence[str], tokens: Tokens, offsets: Offsets, batch: DraftBatch) -> None:
        """Where prompts are still being indexed: those requests get their roots only."""
        for request_id in request_ids:
            if request_id not in self._requests:
                raise SpeculationError(f"request {request_id!r} is not open; open it with its prompt first")
        batch.tokens[:] = 0
        batch.parents[:] = -1
        batch.path_probability[:] = 0
        batch.path_probability[:, 0] = 1
        batch.num_nodes[:] = 1
        for row, request_id in enumerate(request_ids):
            request = self._requests[request_id]
            new = tokens[offsets[row] : offsets[row + 1]]
            if request.indexed is None:
                if len(new):
                    request.waiting.append(new.copy())
                batch.tokens[row, 0] = request.waiting[-1][-1] if request.waiting else request.prompt[-1]
                continue
            if request_id not in self._streams:
                new = np.concatenate([*request.waiting, new])
                request.waiting.clear()
                self._streams[request_id] = request.indexed
            one = _rows_of(batch, row, row + 1)
            self._draft([request.indexed], np.ascontiguousarray(new), np.array([0, len(new)]), one, _width(batch))

    def _new_batch(self, num_rows: int, width: int) -> tuple[DraftBatch, DraftRows]:
        """The arrays for this many requests, made once, and the same arrays flat."""
        batch = DraftBatch(
            np.zeros((num_rows, width), np.int32),
            np.zeros((num_rows, width), np.int32),
            np.zeros((num_rows, width), np.float32),
            np.zeros(num_rows, np.int32),
        )
        made = batch, _rows_of(batch, 0, num_rows)
        self._batches[num_rows, width] = made
        return made


def _rows_of(batch: DraftBatch, first: int, end: int) -> DraftRows:
    """Of the batch's own memory."""
    return DraftRows(
        _width(batch) - 1,
        batch.tokens[first:end].reshape(-1),
        batch.parents[first:end].reshape(-1),
        batch.path_probability[first:end].reshape(-1),
        batch.num_nodes[first:end],
    )


def _width(batch: DraftBatch) -> int:
    return int(batch.tokens.shape[1])


def _key(namespace: str, session: str | None) -> Hashable | None:
    return None if session is None else (namespace, session)
