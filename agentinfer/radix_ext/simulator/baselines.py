"""Policies to compare with: the orders and evictions that stock SGLang has, and those of papers.

Orders, as in SGLang's `schedule_policy.py`:
    fcfs                     as they came
    lpm                      longest cached prefix first
    hrrn                     tokens prefilled since the arrival, over tokens to prefill: highest first
    shortest-prefill-first   fewest tokens to prefill first
    sjf                      shortest prompt first (the paper's baseline, section 3)
lpm and hrrn fall back to fcfs above 128 waiting requests. Those that ask what is cached (lpm, hrrn,
shortest-prefill-first) match every waiting prompt before they sort, which counts as a use of what it matches. None of
them knows sessions, and none holds a turn back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from agentinfer.radix_ext.facade import KvState, Plan, TurnRequest
from agentinfer.radix_ext.paths import PathTree
from agentinfer.radix_ext.simulator.evictions import LeastRecentlyUsed
from agentinfer.radix_ext.simulator.host import HostTier

_FALLBACK_LENGTH = 128
_CACHE_AWARE = frozenset({"lpm", "hrrn", "shortest-prefill-first"})


class StockPolicy:
    """An order of the queue and an eviction. See `facade.Policy`."""

    def __init__(self, order: str, eviction: Callable[[PathTree], LeastRecentlyUsed]) -> None:
        """`order` is one of `ORDERS`."""
        self.paths = PathTree()
        self.host: HostTier | None = None
        """Where what left the device may be: SGLang counts that as cached too. Set by the engine that has one."""
        self._eviction = eviction(self.paths)
        self._sorted = ORDERS[order]
        self._sort_limit = _FALLBACK_LENGTH if order in ("lpm", "hrrn") else None
        self._matches = order in _CACHE_AWARE
        self._waiting: dict[str, TurnRequest] = {}
        self._running: dict[str, TurnRequest] = {}
        self._prefilled_tokens = 0
        self._prefilled_before: dict[str, int] = {}

    def turn_arrived(self, turn: TurnRequest) -> None:
        self._waiting[turn.rid] = turn
        self._prefilled_before[turn.rid] = self._prefilled_tokens

    def turn_started(self, rid: str, now_s: float) -> None:
        turn = self._running[rid] = self._waiting.pop(rid)
        del self._prefilled_before[rid]
        self._prefilled_tokens += self.missing_tokens(turn)

    def turn_requeued(self, rid: str, now_s: float) -> None:
        turn = self._running.pop(rid)
        self._eviction.used(turn.session or rid, now_s)
        self.turn_arrived(turn)

    def turn_finished(self, rid: str, now_s: float, context_tokens: int, tool: str | None, is_last: bool) -> None:
        turn = self._running.pop(rid)
        self._eviction.used(turn.session or rid, now_s)

    def turn_dropped(self, rid: str, now_s: float) -> None:
        self._waiting.pop(rid, None)
        self._running.pop(rid, None)
        self._prefilled_before.pop(rid, None)

    def tool_called(self, session: str, tools: Sequence[str], started_s: float) -> None:
        """Stock policies know no tools."""

    def session_ended(self, session: str) -> None:
        self._eviction.ended(session)

    def plan(self, now_s: float, kv: KvState) -> Plan:
        if self._sort_limit is not None and len(self._waiting) > self._sort_limit:
            return Plan(tuple(self._waiting))
        if self._matches:
            for rid, turn in self._waiting.items():
                self._eviction.used(turn.session or rid, now_s)
        return Plan(tuple(self._sorted(self)))

    def wake_s(self, now_s: float) -> float | None:
        return None

    def victims(self, now_s: float) -> Iterator[int]:
        return self._eviction.victims(now_s)

    def retraction_order(self, rids: Sequence[str], now_s: float) -> list[str]:
        """As given: the engine gives them in stock order."""
        return list(rids)

    def snapshot(self, now_s: float) -> dict[str, Any]:
        return {}

    def cached_tokens(self, turn: TurnRequest) -> int:
        session = turn.session or turn.rid
        cached = self.paths.cached_tokens(session)
        return cached + (self.host.loadable_tokens(session, cached, turn.prompt_tokens) if self.host else 0)

    def missing_tokens(self, turn: TurnRequest) -> int:
        return max(turn.prompt_tokens - self.cached_tokens(turn), 0)

    def response_ratio(self, turn: TurnRequest) -> float:
        missing = self.missing_tokens(turn)
        waited = self._prefilled_tokens - self._prefilled_before[turn.rid]
        return waited / missing if missing else float("inf")

    def by(self, key: Callable[[TurnRequest], float]) -> list[str]:
        """Waiting requests, the lowest `key` first; equal ones as they came."""
        return sorted(self._waiting, key=lambda rid: key(self._waiting[rid]))


ORDERS: Final[dict[str, Callable[[StockPolicy], Sequence[str]]]] = {
    "fcfs": lambda policy: list(policy._waiting),
    "lpm": lambda policy: policy.by(lambda turn: -policy.cached_tokens(turn)),
    "hrrn": lambda policy: policy.by(lambda turn: -policy.response_ratio(turn)),
    "shortest-prefill-first": lambda policy: policy.by(lambda turn: max(1, policy.missing_tokens(turn))),
    "sjf": lambda policy: policy.by(lambda turn: turn.prompt_tokens),
}
