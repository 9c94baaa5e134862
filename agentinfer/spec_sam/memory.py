"""What the sessions of a namespace remember together: an automaton over their finished turns, bounded in bytes.

Nothing can be removed from an automaton, so there are two: turns go into the young one; when it holds half of what is
allowed, it becomes the old one and the former old one goes. What was said lately is always there, and forgetting costs
nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from agentinfer.spec_sam.backend import Automaton
from agentinfer.spec_sam.background import Chunk

Tokens = npt.NDArray[np.int32]

_CHUNK: Final = 256  # tokens; readers wait for one chunk at most, some 50 us


class Generation:
    """An automaton of several contexts, a document each."""

    def __init__(self, max_match: int) -> None:
        self.automaton = Automaton(max_match)
        self._starts: list[int] = []  # positions in the token log
        self._contexts: list[int | None] = []

    def begin(self, context: int | None) -> None:
        """The next tokens are those of this stored context; None where it is not stored."""
        self.automaton.start_document()
        self._starts.append(len(self.automaton.tokens))
        self._contexts.append(context)

    def context_at(self, position: int) -> int | None:
        """The stored context whose text is at this position of the token log."""
        return self._contexts[bisect_right(self._starts, position) - 1] if self._starts else None

    def holds(self, context: int) -> bool:
        return context in self._contexts


class NamespaceMemory:
    """Written by the indexing thread, one turn after the other; read by any thread."""

    def __init__(self, max_bytes: int, max_match: int) -> None:
        self._max_bytes = max_bytes
        self._max_match = max_match
        self.generations: tuple[Generation, ...] = (Generation(max_match),)  # the young one last
        self.is_partial = False  # the store has contexts that are not here

    def chunks(self, tokens: Tokens, context: int | None = None) -> Iterator[Chunk]:
        """Adds the text of a finished turn; `context` is its number in the store."""
        yield lambda: self._begin(context)
        for start in range(0, len(tokens), _CHUNK):
            yield lambda start=start: self._append(tokens[start : start + _CHUNK])  # type: ignore[misc]

    def holds(self, context: int) -> bool:
        return any(generation.holds(context) for generation in self.generations)

    def memory_bytes(self) -> int:
        return sum(generation.automaton.memory_bytes() for generation in self.generations)

    def _append(self, tokens: Tokens) -> None:
        self.generations[-1].automaton.extend(tokens)

    def _begin(self, context: int | None) -> None:
        young = self.generations[-1]
        if young.automaton.memory_bytes() > self._max_bytes // 2:
            self.is_partial = self.is_partial or len(self.generations) > 1
            young = Generation(self._max_match)
            self.generations = (self.generations[-1], young)
        young.begin(context)
