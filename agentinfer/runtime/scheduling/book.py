"""The turns in the engine, told to the policy: each request that waits or runs is one turn of one session.

Every rank keeps its own book and hears the same in the same order. No clock is read here: the time is what requests
and ticks of the HTTP process carry.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentinfer.radix_ext.facade import Policy, TurnRequest
from agentinfer.runtime.requests import ARRIVAL_KEY, HINTS_KEY

logger = logging.getLogger(__name__)


class EnginePolicy(Policy, Protocol):
    """A policy that can be told how fast its engine is."""

    def engine_measured(self, prefill_tokens_per_s: float) -> None: ...


@dataclass(slots=True)
class OpenTurn:
    """A request that the policy knows. `is_alone`: nobody said whose turn it is, so it is a session of its own.
    `has_failed`: it was refused before it was queued, and only waits to be told."""

    request: Any
    session: str
    is_alone: bool
    is_started: bool = False
    has_failed: bool = False


class TurnBook:
    """Owned by the scheduler's process; an `OpenTurn` is freed when its request is released, dropped or swept."""

    def __init__(self, policy: EnginePolicy) -> None:
        self.policy = policy
        self.now_s = 0.0
        self.num_swept = 0
        """Requests that left the engine without passing the prefix cache."""
        self.num_closed = 0
        """Turns that ended, however."""
        self._turns: dict[str, OpenTurn] = {}
        self._num_started = 0
        self.num_failed = 0
        self._open: Counter[str] = Counter()
        self._ended: set[str] = set()

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def num_waiting(self) -> int:
        """Open turns that have not started, or were taken back."""
        return len(self._turns) - self._num_started

    def requests(self, rids: Iterable[str]) -> list[Any]:
        """The engine's requests of open turns, in this order."""
        turns = self._turns
        return [turns[rid].request for rid in rids]

    def __contains__(self, rid: str) -> bool:
        return rid in self._turns

    def advance(self, now_s: float) -> None:
        """Time goes on to `now_s`; never back."""
        self.now_s = max(self.now_s, now_s)

    def arrived(self, request: Any, priority: int = 0) -> None:
        """A request waits: for the first time, or again after the engine took it back."""
        known = self._turns.get(request.rid)
        if known is not None and known.request is request:
            if known.is_started:
                known.is_started = False
                self._num_started -= 1
                self.policy.turn_requeued(request.rid, self.now_s)
            return
        if known is not None:
            self.dropped(request.rid)
        hints, arrived_s = _carried(request)
        if arrived_s is not None:
            self.advance(arrived_s)
        session = hints.get("session")
        turn = OpenTurn(
            request, session or f"request {request.rid}", is_alone=session is None, has_failed=has_failed(request)
        )
        self._turns[request.rid] = turn
        self.num_failed += turn.has_failed
        self._open[turn.session] += 1
        self._ended.discard(turn.session)
        self.policy.turn_arrived(
            TurnRequest(
                rid=request.rid,
                session=turn.session,
                parent=hints.get("parent"),
                arrived_s=self.now_s if arrived_s is None else arrived_s,
                prompt_tokens=len(request.origin_input_ids),
                expected_tool_s=hints.get("expected_tool_s"),
                priority=priority or hints.get("priority", 0),
                is_last=turn.is_alone or bool(hints.get("last", False)),
            )
        )

    def started(self, requests: Iterable[Any]) -> None:
        """These were taken out of the queue."""
        for request in requests:
            turn = self._turns.get(request.rid)
            if turn is not None and not turn.is_started:
                turn.is_started = True
                self._num_started += 1
                self.policy.turn_started(request.rid, self.now_s)

    def released(self, request: Any) -> None:
        """The engine gave back what the request held: it ended, or it was taken back and will be queued again."""
        turn = self._turns.get(request.rid)
        if turn is None or turn.request is not request or not request.finished():
            return
        if request.finished_reason.to_json().get("type") == "abort":
            self.dropped(request.rid)
            return
        context_tokens = len(request.origin_input_ids) + len(request.output_ids)
        hints, _ = _carried(request)
        is_last = turn.is_alone or bool(hints.get("last", False))
        self.policy.turn_finished(request.rid, self.now_s, context_tokens, hints.get("tool"), is_last)
        self._close(request.rid, is_gone=is_last)

    def dropped(self, rid: str) -> None:
        """A turn ends without an answer. Ignored for a request that is not open."""
        turn = self._turns.get(rid)
        if turn is not None:
            self.policy.turn_dropped(rid, self.now_s)
            self._close(rid, is_gone=turn.is_alone)

    def tool_called(self, session: str, tools: Collection[str], started_s: float) -> None:
        """The session's client runs these tools since `started_s`."""
        self.policy.tool_called(session, tuple(tools), started_s)

    def session_ended(self, session: str) -> None:
        """No further turn of it comes; its cached context is nobody's, at once or when its open turns end."""
        if self._open[session]:
            self._ended.add(session)
            return
        del self._open[session]
        self.policy.session_ended(session)

    def session_of(self, request: Any) -> str | None:
        """Whose turn an open request is."""
        turn = self._turns.get(request.rid)
        return turn.session if turn is not None and turn.request is request else None

    def victims(self) -> Iterator[int]:
        """Nodes of the policy's path tree to evict, least valuable first."""
        return self.policy.victims(self.now_s)

    def retraction_order(self, rids: Sequence[str]) -> list[str]:
        """Running requests, the one most worth keeping first."""
        return self.policy.retraction_order(rids, self.now_s)

    def sweep(self, present: Collection[str]) -> None:
        """Drops the turns whose requests are no longer among `present`, the engine's request ids."""
        for rid in [rid for rid in self._turns if rid not in present]:
            self.num_swept += 1
            logger.debug("request %s left the engine unseen", rid)
            self.dropped(rid)

    def check_integrity(self) -> None:
        """Recounts. Raises AssertionError naming the count that is wrong."""
        counted = (self._num_started, self.num_failed, dict(self._open))
        turns = self._turns.values()
        open_turns = dict(Counter(turn.session for turn in turns))
        recounted = (sum(turn.is_started for turn in turns), sum(turn.has_failed for turn in turns), open_turns)
        assert counted == recounted, f"counted (started, failed, open) {counted}, recounted {recounted}"

    def _close(self, rid: str, is_gone: bool) -> None:
        turn = self._turns.pop(rid)
        self._num_started -= turn.is_started
        self.num_failed -= turn.has_failed
        self.num_closed += 1
        self._open[turn.session] -= 1
        if self._open[turn.session]:
            return
        del self._open[turn.session]
        if is_gone or turn.session in self._ended:
            self._ended.discard(turn.session)
            self.policy.session_ended(turn.session)


def has_failed(request: Any) -> bool:
    """Whether SGLang has found the request to be one that it cannot serve; it is queued all the same."""
    return request.to_finish is not None or request.finished()


def _carried(request: Any) -> tuple[Mapping[str, Any], float | None]:
    """The hints that our HTTP layer put into a request, and when it arrived there; nothing for a request it never saw.

    Only a session that the HTTP layer knows is one: nobody else would tell of its end.
    """
    custom = request.sampling_params.custom_params
    if not isinstance(custom, dict):
        return {}, None
    hints, arrived_s = custom.get(HINTS_KEY), custom.get(ARRIVAL_KEY)
    if not isinstance(hints, dict) or not isinstance(arrived_s, int | float):
        return {}, None
    return hints, float(arrived_s)
