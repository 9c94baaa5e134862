"""What finished turns become: evidence for everybody in the namespace, kept in memory and, with a store, on disk.

What takes longer than a moment is the indexing thread's work. A store that fails (a full disk) is reported once, and
drafting goes on without.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from agentinfer.spec_sam.background import BackgroundBuilder, Chunk
from agentinfer.spec_sam.memory import Generation, NamespaceMemory
from agentinfer.spec_sam.store import ContextStore, Retrieved, StoreError

logger = logging.getLogger(__name__)

Tokens = npt.NDArray[np.int32]

_QUERY_TOKENS: Final = 512  # of the prompt's end
_LOAD_SHARE: Final = 0.4  # of a namespace's bytes that stored contexts may fill at its first request
_AT_ONCE: Final = 18  # chunks of a memory, so some 4,000 tokens: they take two thirds of a millisecond
_BYTES_A_TOKEN: Final = 40  # an automaton's, see README.md


@dataclass(frozen=True, slots=True)
class Turn:
    """A finished turn of a session. `num_shared` tokens of the prompt were the session's before."""

    namespace: str
    session: str
    number: int
    prompt: Tokens
    output: Tokens
    num_shared: int


class Contexts:
    """The namespaces' memories, filled from finished turns and, at a namespace's first request, from the store."""

    def __init__(
        self,
        builder: BackgroundBuilder,
        *,
        memory_bytes: int,
        max_match: int,
        store: ContextStore | None = None,
        num_retrieved: int = 4,
    ) -> None:
        self._builder = builder
        self._memory_bytes = memory_bytes
        self._max_match = max_match
        self._store = store
        self._num_retrieved = num_retrieved
        self._memories: dict[str, NamespaceMemory] = {}
        self._lock = threading.Lock()  # of the memories by namespace
        self._has_failed = False

    def memory(self, namespace: str) -> NamespaceMemory:
        """The namespace's memory; all together hold `memory_bytes`, and those not asked for the longest go first."""
        with self._lock:
            memory = self._memories.pop(namespace, None)
            is_new = memory is None
            if memory is None:
                memory = NamespaceMemory(self._memory_bytes, self._max_match)
            self._memories[namespace] = memory  # the latest last
            if is_new:
                self._forget_idle(namespace)
        if is_new and self._store is not None:
            self._builder.submit(memory, self._load(namespace, memory))
        return memory

    def retrieve(self, namespace: str, session: str | None, prompt: Tokens) -> tuple[Generation, float] | None:
        """Stored contexts said in situations like this one that the memory does not hold, and how similar the best is.
        None where there are none."""
        memory = self.memory(namespace)
        if self._store is None or not memory.is_partial:
            return None
        found: Sequence[Retrieved] = self._guarded(
            lambda store: store.retrieve(
                namespace, prompt[-_QUERY_TOKENS:], self._num_retrieved, exclude_session=session
            ),
            (),
        )
        new = [each for each in found if not memory.holds(each.context_id)]
        if not new:
            return None
        generation = Generation(self._max_match)
        for each in new:
            generation.begin(each.context_id)
            generation.automaton.extend(each.tokens)
        return generation, min(1.0, max(each.similarity for each in new))

    def remember(self, turn: Turn) -> Iterator[Chunk]:
        """Stores the turn, then adds what is new in it to the memory: in a job of its own, for its one writer."""
        kept: list[int | None] = [None]
        if self._store is not None:
            yield lambda: kept.append(
                self._guarded(
                    lambda store: store.add(turn.namespace, turn.session, turn.number, turn.prompt, turn.output), None
                )
            )
        memory = self.memory(turn.namespace)
        new = np.concatenate([turn.prompt[turn.num_shared :], turn.output])
        self._builder.submit(memory, memory.chunks(new, kept[-1]), at_once=_AT_ONCE if self._store is None else 0)

    @property
    def has_store(self) -> bool:
        return self._store is not None

    def credit(self, sources: Sequence[Generation | None], credits: tuple[Tokens, Tokens]) -> None:
        """Accepted tokens, by index of the source that proposed them and position there, count for their contexts."""
        counts: Counter[int] = Counter()
        for index, position in zip(*(array.tolist() for array in credits), strict=True):
            generation = sources[index]
            context = generation.context_at(position) if generation is not None else None
            if context is not None:
                counts[context] += 1

        def pay(store: ContextStore) -> None:
            for context, accepted in counts.items():
                store.credit(context, accepted)

        self._guarded(pay, None)

    def memory_bytes(self) -> int:
        return sum(memory.memory_bytes() for memory in list(self._memories.values()))  # others are added meanwhile

    def _forget_idle(self, kept: str) -> None:
        left_bytes = self.memory_bytes()
        for namespace in [each for each in self._memories if each != kept]:
            if left_bytes <= self._memory_bytes:
                break
            left_bytes -= self._memories.pop(namespace).memory_bytes()

    def _load(self, namespace: str, memory: NamespaceMemory) -> Iterator[Chunk]:
        """The most useful stored contexts, the latest of them last, up to a share of the memory's bytes."""
        store = self._store
        assert store is not None
        room = int(_LOAD_SHARE * self._memory_bytes / _BYTES_A_TOKEN)
        chosen = []
        stored = store.contexts(namespace)
        for context in sorted(stored, key=lambda each: (-store.usefulness(each.id), -each.id)):
            size = len(store.tokens(context.id))
            if size > room:
                memory.is_partial = True
                break
            room -= size
            chosen.append(context.id)
        for context_id in sorted(chosen):
            try:
                tokens = store.tokens(context_id)
            except KeyError:  # evicted since
                continue
            yield from memory.chunks(tokens, context_id)

    def _guarded(self, call: Callable[[ContextStore], Any], otherwise: Any) -> Any:
        if self._store is None:
            return otherwise
        try:
            return call(self._store)
        except StoreError as error:
            if not self._has_failed:
                logger.error("the context store fails, so drafting goes on with what is in memory: %s", error)
            self._has_failed = True
            return otherwise
