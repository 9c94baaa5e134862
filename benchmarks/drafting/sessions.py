"""Recorded sessions as tokens, and the file they travel in, so that a drafter's process loads no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.drafting.drafter import Tokens


@dataclass(frozen=True, slots=True)
class TokenTurn:
    """The prompt is the first `kept` tokens of the turn before, its reply included, and then `added`."""

    kept: int
    added: Tokens
    reply: Tokens


@dataclass(frozen=True, slots=True)
class TokenSession:
    id: str
    task: str
    turns: tuple[TokenTurn, ...]

    def exchanges(self) -> Iterator[tuple[Tokens, Tokens]]:
        """(whole prompt, reply) a turn. The prompt is a fresh array."""
        context = np.empty(0, np.int32)
        for turn in self.turns:
            prompt = np.concatenate([context[: turn.kept], turn.added])
            yield prompt, turn.reply
            context = np.concatenate([prompt, turn.reply])


@dataclass(frozen=True, slots=True)
class Source:
    """Where the tokens come from: the trace file's name and checksum, the tokenizer's model, its end-of-turn token."""

    trace: str
    sha256: str
    tokenizer: str
    end_of_turn: int


@dataclass(frozen=True, slots=True)
class TokenTrace:
    source: Source
    sessions: tuple[TokenSession, ...]


def save(trace: TokenTrace, path: Path) -> None:
    turns = [
        (number, turn.kept, len(turn.added), len(turn.reply))
        for number, session in enumerate(trace.sessions)
        for turn in session.turns
    ]
    flat = [part for session in trace.sessions for turn in session.turns for part in (turn.added, turn.reply)]
    names = {"source": asdict(trace.source), "sessions": [[s.id, s.task] for s in trace.sessions]}
    np.savez(
        path,
        tokens=np.concatenate(flat),
        turns=np.array(turns, dtype=np.int64),
        names=np.frombuffer(json.dumps(names).encode(), dtype=np.uint8),
    )


def load(path: Path) -> TokenTrace:
    with np.load(path) as file:
        tokens, table = file["tokens"], file["turns"]
        names = json.loads(file["names"].tobytes())
    turns: list[list[TokenTurn]] = [[] for _ in names["sessions"]]
    at = 0
    for number, kept, num_added, num_reply in table.tolist():
        middle, end = at + num_added, at + num_added + num_reply
        turns[number].append(TokenTurn(kept, tokens[at:middle], tokens[middle:end]))
        at = end
    sessions = tuple(
        TokenSession(session_id, task, tuple(of_session))
        for (session_id, task), of_session in zip(names["sessions"], turns, strict=True)
    )
    return TokenTrace(Source(**names["source"]), sessions)
