"""What is simulated: sessions as numbers of tokens and seconds, without text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agentinfer.radix_ext.simulator.costs import SimulationError


@dataclass(frozen=True, slots=True)
class SharedSegment:
    """Tokens at the start of contexts; sessions whose first segments have the same keys share them in the cache."""

    key: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SimTurn:
    """One request. Its prompt is the first `kept_tokens` of the session's context so far and `new_tokens` after them.

    In a session's first turn `kept_tokens` are those of its shared segments. After the reply the session is away for
    `gap_s`, running `tool`, and at least until its `children` have ended, which begin when the reply is there.
    """

    kept_tokens: int
    new_tokens: int
    output_tokens: int
    gap_s: float = 0.0
    tool: str | None = None
    children: tuple[SimSession, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        return self.kept_tokens + self.new_tokens

    @property
    def context_tokens(self) -> int:
        """Prompt and reply."""
        return self.kept_tokens + self.new_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class SimSession:
    """Raises SimulationError, naming the turn, where turns do not fit together."""

    id: str
    turns: tuple[SimTurn, ...]
    shared: tuple[SharedSegment, ...] = ()

    def __post_init__(self) -> None:
        if not self.turns:
            raise SimulationError(f"session {self.id}: expected at least one turn")
        available = sum(segment.num_tokens for segment in self.shared)
        if any(segment.num_tokens < 1 for segment in self.shared):
            raise SimulationError(f"session {self.id}: a shared segment has no tokens")
        for number, turn in enumerate(self.turns):
            where = f"session {self.id}, turn {number}"
            if turn.new_tokens < 1 or turn.output_tokens < 1 or turn.gap_s < 0:
                raise SimulationError(f"{where}: expected new and output tokens from 1 and a gap from 0, got {turn}")
            if not 0 <= turn.kept_tokens <= available or (not number and turn.kept_tokens != available):
                expected = f"{available}" if not number else f"0 to {available}"
                raise SimulationError(f"{where}: expected {expected} kept tokens, got {turn.kept_tokens}")
            available = turn.context_tokens

    @property
    def longest_context_tokens(self) -> int:
        """Of all turns, those of children too."""
        own = max(turn.context_tokens for turn in self.turns)
        return max([own, *(child.longest_context_tokens for turn in self.turns for child in turn.children)])

    @property
    def num_turns(self) -> int:
        """With those of its children."""
        return len(self.turns) + sum(child.num_turns for turn in self.turns for child in turn.children)


def renamed(session: SimSession, suffix: str) -> SimSession:
    """A separate session that does the same; it shares with the first only what `shared` says."""
    turns = session.turns
    if any(turn.children for turn in turns):
        turns = tuple(_with_children(turn, suffix) for turn in turns)
    return SimSession(session.id + suffix, turns, session.shared)


def repeated(sessions: tuple[SimSession, ...], count: int) -> Iterator[SimSession]:
    """The first `count` of the sessions, begun again from the start as often as needed."""
    for number in range(count):
        session = sessions[number % len(sessions)]
        again = number // len(sessions)
        yield renamed(session, f"~{again}") if again else session


def _with_children(turn: SimTurn, suffix: str) -> SimTurn:
    children = tuple(renamed(child, suffix) for child in turn.children)
    return SimTurn(turn.kept_tokens, turn.new_tokens, turn.output_tokens, turn.gap_s, turn.tool, children)
