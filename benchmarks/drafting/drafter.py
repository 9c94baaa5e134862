"""What a drafter is to the benchmark, and what one draft is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agentinfer.errors import AgentInferError

Tokens = npt.NDArray[np.int32]


class BenchmarkError(AgentInferError):
    """The benchmark cannot run as asked; the message says what to change or install."""


@dataclass(frozen=True, slots=True)
class Draft:
    """One request's tree at one step. Node 0 is the last verified token, the others are drafted; `parents[i] < i`.

    `path_probability[i]` is the drafter's own estimate that node i and all its ancestors are accepted; None where it
    makes no such estimate.
    """

    tokens: list[int]
    parents: list[int]
    path_probability: list[float] | None = None


class Drafter(Protocol):
    """A drafter that lives as long as a server would and serves one request at a time, turn after turn.

    Calls of a turn: `start_turn`, `accept` of the token that prefill gave, then per verify step `draft` and `accept` of
    what the step emitted, and `end_turn`. Every call but `tree` and `learn` is timed.
    """

    def start_session(self, session_id: str) -> None: ...

    def start_turn(self, prompt: Tokens) -> None:
        """A request came in. `prompt` is all of it, whatever the session said before included."""

    def draft(self, budget: int) -> Any:
        """At most `budget` tokens to verify, the last verified one included, in a form of the drafter's own."""

    def tree(self, drafted: Any) -> Draft:
        """What `draft` returned as a tree. Not timed, because an engine takes each drafter's own form."""

    def accept(self, tokens: Tokens) -> None: ...

    def end_turn(self) -> None:
        """The request finished; work put off until now counts."""

    def end_session(self) -> None: ...

    def learn(self, turns: list[tuple[Tokens, Tokens]]) -> None:
        """Take in a session of earlier traffic, (prompt, reply) a turn, as if it had been served."""
