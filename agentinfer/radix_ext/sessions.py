"""What the policy knows of each session: its place in line, its context, how it grows, and what it is doing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from agentinfer.radix_ext.facade import TurnRequest
from agentinfer.radix_ext.tool_latency import ToolLatency

# Of each new turn, what it changes a running mean: the last three turns make up two thirds of it.
_NEWS_SHARE = 0.3
_FIRST_GROWTH_TOKENS = 512.0


class Standing(Enum):
    """Whether a session's next turn may run: as a member of the working set, for one turn, or not yet."""

    MEMBER = "member"
    VISITOR = "visitor"
    HELD = "held"


@dataclass(slots=True)
class Session:
    """`seniority` orders sessions, the eldest lowest; a child stands right behind its parent, who waits for it.

    `context_tokens` is what the next turn needs at least, `known_tokens` what the last one left, `growth_tokens` what a
    turn adds on average. `away_since_s` and `tools`: since when it runs which tools, None while a turn waits or runs;
    `expected_tool_s`: how long the client said that would take.
    """

    id: str
    seniority: tuple[int, ...]
    parent: str | None
    standing: Standing = Standing.HELD
    context_tokens: int = 0
    known_tokens: int = 0
    growth_tokens: float = _FIRST_GROWTH_TOKENS
    num_turns: int = 0
    waiting: dict[str, TurnRequest] = field(default_factory=dict)
    running: dict[str, TurnRequest] = field(default_factory=dict)
    away_since_s: float | None = None
    tools: tuple[str, ...] = ()
    expected_tool_s: float | None = None
    is_ended: bool = False

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self.running)

    def came_back(self, now_s: float, latency: ToolLatency) -> None:
        """A turn arrived: what the session waited for is over, and `latency` learns how long it took."""
        if self.away_since_s is not None:
            latency.observe(self.tools, max(0.0, now_s - self.away_since_s))
            self.away_since_s = None
        self.is_ended = False

    def return_rate(self, now_s: float, latency: ToolLatency) -> float:
        """How soon the session, which is away, is expected back, in 1/s."""
        assert self.away_since_s is not None, f"{self.id} is not away"
        return latency.return_rate(self.tools, max(0.0, now_s - self.away_since_s), self.expected_tool_s)

    def finished_turn(self, turn: TurnRequest, context_tokens: int, now_s: float, tools: tuple[str, ...]) -> None:
        """`turn` ended with `context_tokens` of prompt and reply."""
        if self.num_turns:
            self.growth_tokens += _NEWS_SHARE * (max(0, context_tokens - self.known_tokens) - self.growth_tokens)
        self.context_tokens = self.known_tokens = context_tokens
        self.num_turns += 1
        self.tools, self.expected_tool_s = tools, turn.expected_tool_s
        self.away_since_s = None if self.is_busy else now_s


class SessionBook:
    """The live sessions by id. Not thread-safe."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, session: str) -> Session | None:
        return self._sessions.get(session)

    def open(self, session: str, parent: str | None, priority: int) -> Session:
        """A new session: last in line among those of its priority, or right after its parent where that is known."""
        assert session not in self._sessions, f"session {session} is open already"
        self._next += 1
        elder = None if parent is None else self._sessions.get(parent)
        seniority = (-priority, self._next) if elder is None else (*elder.seniority, self._next)
        opened = self._sessions[session] = Session(session, seniority, parent)
        return opened

    def drop(self, session: str) -> None:
        self._sessions.pop(session, None)
