"""The offload tier: what was evicted from the device waits in host memory, from where it returns without recomputation.

A session's evicted tokens lie on a pile, the deepest at the bottom, since eviction works from the end of a context to
its start; what lies on top continues what the device still holds. Tokens are in one tier at a time. The oldest go first
when the tier is full. What no live session would use again is not offloaded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Piece:
    """Tokens [start, end) of the contexts of `sessions`."""

    start: int
    end: int
    sessions: set[str] = field(default_factory=set)

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


class HostTier:
    """Holds at most `capacity_tokens`; 0 for no such tier."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.held_tokens = 0
        self._piles: dict[str, list[Piece]] = {}
        self._by_age: OrderedDict[int, Piece] = OrderedDict()

    def offload(self, start: int, end: int, sessions: Collection[str]) -> None:
        """Tokens [start, end) that end the contexts of `sessions` leave the device."""
        num_tokens = end - start
        if not sessions or num_tokens > self.capacity_tokens:
            return
        while self.held_tokens + num_tokens > self.capacity_tokens:
            self._drop(next(iter(self._by_age.values())))
        piece = Piece(start, end, set(sessions))
        self._by_age[id(piece)] = piece
        self.held_tokens += num_tokens
        for session in sessions:
            self._piles.setdefault(session, []).append(piece)

    def loadable_tokens(self, session: str, start: int, limit: int) -> int:
        """Tokens of the session's context from `start` on, in one piece and up to `limit`, that are here."""
        reached = start
        for piece in reversed(self._piles.get(session, ())):
            if piece.start > reached:
                break
            reached = max(reached, piece.end)
        return max(0, min(reached, limit) - start)

    def release(self, session: str) -> None:
        """The session needs nothing of this any more: it is on the device again, or the session is gone."""
        for piece in self._piles.pop(session, ()):
            piece.sessions.discard(session)
            if not piece.sessions:
                self._forget(piece)

    def cut(self, session: str, kept_tokens: int) -> None:
        """The session's context goes on differently after `kept_tokens`."""
        pile = self._piles.get(session, [])
        for piece in [piece for piece in pile if piece.start >= kept_tokens]:
            self._leave(piece, session)
        deepest = next(iter(self._piles.get(session, ())), None)
        if deepest is None or deepest.end <= kept_tokens:
            return
        if len(deepest.sessions) > 1:
            self._leave(deepest, session)  # it stays whole for the others
        else:
            self.held_tokens -= deepest.end - kept_tokens
            deepest.end = kept_tokens

    def check_integrity(self) -> None:
        """Raises AssertionError naming the broken rule."""
        held = sum(piece.num_tokens for piece in self._by_age.values())
        assert held == self.held_tokens <= self.capacity_tokens, (
            f"{held} tokens on the host, counted {self.held_tokens}"
        )
        for session, pile in self._piles.items():
            assert pile, f"{session} has an empty pile"
            assert all(session in piece.sessions for piece in pile), f"{session} does not own its pile"

    def _drop(self, piece: Piece) -> None:
        for session in list(piece.sessions):
            self._leave(piece, session)

    def _leave(self, piece: Piece, session: str) -> None:
        pile = self._piles[session]
        pile.remove(piece)
        if not pile:
            del self._piles[session]
        piece.sessions.discard(session)
        if not piece.sessions:
            self._forget(piece)

    def _forget(self, piece: Piece) -> None:
        del self._by_age[id(piece)]
        self.held_tokens -= piece.num_tokens
