"""How useful each context has been, and which ones go first when room is needed.

Usefulness is accepted draft tokens, halved every `half_life_s`; a context is worth its usefulness per byte held. One
added within the grace period had no chance to prove itself, and goes only after all others, oldest first.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentinfer.spec_sam.store.payloads import StoredContext


class Ledger:
    """Accepted tokens by context. Not thread-safe: the store guards it."""

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._accepted: dict[int, tuple[float, float]] = {}  # context -> (accepted tokens, as of unix seconds)
        self._unsaved: set[int] = set()
        self._sequence: dict[int, int] = {}  # context -> sequence of the log record that spoke of it last

    def credit(self, context_id: int, accepted_tokens: float, now_s: float) -> None:
        self._accepted[context_id] = (self.value(context_id, now_s) + accepted_tokens, now_s)
        self._unsaved.add(context_id)

    def restore(self, context_id: int, accepted: float, at_unix_s: float, sequence: int) -> None:
        """What a record of the log says; the one with the highest sequence counts, in whatever order they come."""
        if sequence >= self._sequence.get(context_id, 0):
            self._sequence[context_id] = sequence
            self._accepted[context_id] = (accepted, at_unix_s)

    def value(self, context_id: int, now_s: float) -> float:
        accepted, at_s = self._accepted.get(context_id, (0.0, now_s))
        # A clock that was set back must not make a context more useful than it was.
        return float(accepted * 0.5 ** (max(0.0, now_s - at_s) / self._half_life_s))

    def forget(self, context_ids: Iterable[int]) -> None:
        for context_id in context_ids:
            self._accepted.pop(context_id, None)
            self._unsaved.discard(context_id)
            self._sequence.pop(context_id, None)

    def take_unsaved(self, now_s: float) -> dict[int, float]:
        """What the log does not say yet. It counts as saved from now on, so that credit given meanwhile does not."""
        return self.take(sorted(self._unsaved), now_s)

    def take(self, context_ids: Iterable[int], now_s: float) -> dict[int, float]:
        """Of these, the ones that ever had credit; they count as saved from now on."""
        taken = {i: self.value(i, now_s) for i in context_ids if i in self._accepted}
        self._unsaved.difference_update(taken)
        return taken

    def give_back(self, context_ids: Iterable[int]) -> None:
        """Taken, but not saved."""
        self._unsaved.update(i for i in context_ids if i in self._accepted)

    @property
    def context_ids(self) -> frozenset[int]:
        return frozenset(self._accepted)

    def eviction_order(self, contexts: Iterable[StoredContext], now_s: float, grace_s: float) -> list[StoredContext]:
        """The first one goes first."""

        def rank(context: StoredContext) -> tuple[bool, float, int]:
            in_grace = now_s - context.added_unix_s < grace_s
            return in_grace, 0.0 if in_grace else self.value(context.id, now_s) / context.size_bytes, context.id

        return sorted(contexts, key=rank)
