"""What a scheduling policy is asked and told: plain records, and the protocol that engine and simulator call.

All times are seconds on one carried clock: they come with requests and ticks, so that every tensor-parallel rank, told
the same in the same order, decides the same. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentinfer.radix_ext.paths import PathTree


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A request that waits for the engine. A request without a session is a session of one turn.

    `parent` is the session that waits for this one's answer. `expected_tool_s` is how long the client says its tool
    will run after this turn, None where it does not. A higher `priority` goes first.
    """

    rid: str
    session: str | None
    arrived_s: float
    prompt_tokens: int
    parent: str | None = None
    expected_tool_s: float | None = None
    priority: int = 0
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class KvState:
    """The engine's cache at one moment, in tokens: free slots, slots that eviction could free, running requests."""

    free_tokens: int
    evictable_tokens: int
    num_running: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Requests to try in this order; whoever waits and is not named is not to be tried now."""

    order: tuple[str, ...]


class Policy(Protocol):
    """Decides who runs next and what is evicted first. `paths` mirrors the cache and is kept by the caller.

    A turn arrives, starts, perhaps is requeued (retracted by the engine) and starts again, and ends in `turn_finished`
    or `turn_dropped`; each call names a request that is in the state before.
    """

    paths: PathTree

    def turn_arrived(self, turn: TurnRequest) -> None: ...
    def turn_started(self, rid: str, now_s: float) -> None: ...
    def turn_requeued(self, rid: str, now_s: float) -> None: ...
    def turn_finished(self, rid: str, now_s: float, context_tokens: int, tool: str | None, is_last: bool) -> None: ...
    def turn_dropped(self, rid: str, now_s: float) -> None: ...
    def tool_called(self, session: str, tools: Sequence[str], started_s: float) -> None: ...
    def session_ended(self, session: str) -> None: ...
    def plan(self, now_s: float, kv: KvState) -> Plan: ...
    def wake_s(self, now_s: float) -> float | None:
        """When the plan may change though nothing happens: the next deadline. None when no turn is held."""
        ...

    def victims(self, now_s: float) -> Iterator[int]:
        """Leaves to evict, least valuable first. The caller removes the node from `paths` or leaves it and goes on."""
        ...

    def retraction_order(self, rids: Sequence[str], now_s: float) -> list[str]:
        """Running requests, the one most worth keeping first."""
        ...

    def snapshot(self, now_s: float) -> dict[str, Any]: ...
