"""The order among turns that may go: the paper's score (section 3) in seconds, with progress and parents.

    need_eff = mix * prompt + (1 - mix) * need
    score = a * hit - (b + lambda) * need_eff + c * wait * (1 + g * progress) + p * parent

Tokens are turned into seconds of prefill, so that the terms weigh against each other: with all weights 1 and a loose
cache, a turn overtakes another when that one loses less by waiting than it saves. In a loose cache the shortest prompt
goes first, so short tool requests overtake; in a tight one hits go first and new tokens wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agentinfer.radix_ext.pressure import Pressure
from agentinfer.radix_ext.settings import SchedulingSettings

# Turns after which a session's waiting turn ages as fast as it ever will.
_FULL_PROGRESS_TURNS = 50

_COLUMNS: Final = ("prompt_tokens", "hit_tokens", "arrived_s", "num_turns", "parent_tokens", "priority")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a waiting turn is scored by. `parent_tokens`: cached context that idles until this turn is done."""

    prompt_tokens: int
    hit_tokens: int
    arrived_s: float
    num_turns: int
    parent_tokens: int = 0
    priority: int = 0


class Candidates:
    """Waiting turns that may go, in one table, so that ordering a thousand of them takes well under a millisecond."""

    def __init__(self, settings: SchedulingSettings) -> None:
        self._settings = settings
        self._rids: list[str] = []
        self._row_of: dict[str, int] = {}
        self._table: NDArray[np.float64] = np.zeros((len(_COLUMNS), 64))

    def __len__(self) -> int:
        return len(self._rids)

    def __contains__(self, rid: str) -> bool:
        return rid in self._row_of

    def use(self, settings: SchedulingSettings) -> None:
        """Settings with another speed of the engine."""
        self._settings = settings

    def add(self, rid: str, candidate: Candidate) -> None:
        """A turn may go from now on."""
        assert rid not in self._row_of, f"{rid} may go already"
        row = len(self._rids)
        if row == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        self._table[:, row] = [getattr(candidate, name) for name in _COLUMNS]
        self._rids.append(rid)
        self._row_of[rid] = row

    def discard(self, rid: str) -> None:
        """The turn may go no longer, or has gone; nothing happens where it could not."""
        row = self._row_of.pop(rid, None)
        if row is None:
            return
        last = self._rids.pop()
        if last != rid:
            self._rids[row] = last
            self._row_of[last] = row
            self._table[:, row] = self._table[:, len(self._rids)]

    def set_hit_tokens(self, rid: str, hit_tokens: int) -> None:
        """What is cached of the turn's context changed."""
        row = self._row_of[rid]
        self._table[1, row] = min(hit_tokens, self._table[0, row])

    def demanded_tokens(self) -> int:
        """D: what all of them need anew."""
        prompt, hit = self._table[:2, : len(self._rids)]
        return int(prompt.sum() - hit.sum())

    def in_order(self, now_s: float, pressure: Pressure) -> list[str]:
        """The turns, higher priority first and within it the higher score."""
        prompt, hit, arrived_s, num_turns, parent, priority = self._table[:, : len(self._rids)]
        settings = self._settings
        effective = pressure.looseness * prompt + (1.0 - pressure.looseness) * (prompt - hit)
        tokens = settings.hit_weight * hit - (settings.need_weight + pressure.price) * effective
        tokens += settings.parent_weight * parent
        progress = np.minimum(num_turns, _FULL_PROGRESS_TURNS) / _FULL_PROGRESS_TURNS
        aged_s = settings.wait_weight * (now_s - arrived_s) * (1.0 + settings.progress_weight * progress)
        score = tokens / settings.prefill_tokens_per_s + aged_s
        # Equal scores go by arrival; the order of rows, which is left over, depends on what was told only.
        rows = np.lexsort((arrived_s, -score, -priority))
        return [self._rids[row] for row in rows.tolist()]
