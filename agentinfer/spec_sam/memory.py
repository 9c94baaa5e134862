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
    """One of the two automata, and which context each of its documents is."""

    def __init__(self, max_match: int) -> None:
        self.automaton = Automaton(max_match)
        self.starts: list[int] = []  # positions in the token log
        self.contexts: list[int | None] = []

    def context_at(self, position: int) -> int | None:
        """The stored context whose text is at this position of the token log; None where it is not stored."""
        return self.contexts[bisect_right(self.starts, position) - 1] if self.starts else None


class NamespaceMemory:
    """Written by the indexing thread, read by any."""

    def __init__(self, max_bytes: int, max_match: int) -> None:
        self._max_bytes = max_bytes
        self._max_match = max_match
        self.generations: tuple[Generation, ...] = (Generation(max_match),)  # the young one last

    def chunks(self, tokens: Tokens, context: int | None = None) -> Iterator[Chunk]:
        """Adds the text of a finished turn; `context` is its number in the store."""
        young: list[Generation] = []
        yield lambda: young.append(self._begin(context))
        for start in range(0, len(tokens), _CHUNK):
            yield lambda start=start: young[0].automaton.extend(tokens[start : start + _CHUNK])  # type: ignore[misc]

    def memory_bytes(self) -> int:
        return sum(generation.automaton.memory_bytes() for generation in self.generations)

    @property
    def has_room(self) -> bool:
        """The old generation would not go for the next turn."""
        return len(self.generations) == 1

    def _begin(self, context: int | None) -> Generation:
        young = self.generations[-1]
        if young.automaton.memory_bytes() > self._max_bytes // 2:
            young = Generation(self._max_match)
            self.generations = (self.generations[-1], young)
        young.automaton.start_document()
        young.starts.append(len(young.automaton.tokens))
        young.contexts.append(context)
        return young
