"""A session between its turns: its trajectory, what each model has read of it, and what runs for it in the background.

`CollabSessions` owns them; one is dropped when the session table expects no further turn of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.settings import CollabSettings
from agentinfer.collab_lang.trajectory import Trajectory
from agentinfer.collab_lang.virtual_model.engine import Engine
from agentinfer.sessions import Turn


@dataclass(frozen=True, slots=True)
class Question:
    """A check to be made: of `reply`, which `engine` spoke in `step` and which answered the chat `body`.

    `on_judged` is called when its verdict is with the trajectory.
    """

    step: int
    engine: Engine
    body: Mapping[str, Any] = field(repr=False)
    reply: Mapping[str, Any] = field(repr=False)
    on_judged: Callable[[], None] = field(repr=False)


@dataclass(slots=True)
class Read:
    """What a model has read of a session. `tokens`: when it last spoke, its reply included, in its own tokens.

    `size_bytes`: the length of the request and reply that it has read, computed ahead or not. `ahead_tokens`: the
    prompt that was computed ahead since the last turn, None where none was to its end.
    """

    tokens: int = 0
    size_bytes: int = 0
    ahead_tokens: int | None = None


@dataclass(slots=True)
class CollabSession:
    """Owned by `CollabSessions`. Lives on one event loop."""

    session_id: str
    trajectory: Trajectory
    read: dict[Model, Read] = field(default_factory=lambda: {model: Read() for model in Model})
    last_speaker: Model | None = None
    # The length of the last request with its reply.
    size_bytes: int = 0
    # Whether a step is under way. Another turn at that time is none.
    is_stepping: bool = False
    # By which a router before several replicas finds the one that has the session's KV.
    routing: dict[str, str] = field(default_factory=dict)
    checking: asyncio.Task[None] | None = None
    # What that task asks, and what is asked after it.
    question: Question | None = None
    next_question: Question | None = None
    # Reading ahead: by which model, and a request with its reply of which length.
    warming: asyncio.Task[None] | None = None
    warming_model: Model | None = None
    warming_bytes: int = 0

    @property
    def is_checking(self) -> bool:
        return _runs(self.checking)

    def stop_checking(self) -> None:
        _cancel(self.checking)
        self.checking = self.question = self.next_question = None

    @property
    def is_warming(self) -> bool:
        return _runs(self.warming)

    def stop_warming(self) -> None:
        _cancel(self.warming)
        self.warming = None

    def forget_read(self, *models: Model) -> None:
        """What the models, both where none is named, had read is not in their engines' caches any more."""
        for model in models or tuple(Model):
            self.read[model] = Read()

    def as_json(self) -> dict[str, Any]:
        state = self.trajectory.state
        return {
            "session": self.session_id,
            "steps": state.steps,
            "phase": state.phase.value,
            "next_model": state.model.value,
            "reason": state.reason.value,
            "late_verdicts": self.trajectory.late_verdicts,
            "last_speaker": self.last_speaker,
            "is_checking": self.is_checking,
            "is_warming": self.is_warming,
            "read_tokens": {model.value: read.tokens for model, read in self.read.items()},
            "transitions": [transition.as_json() for transition in self.trajectory.transitions],
        }


class CollabSessions:
    """Those that the session table knows, by its ids; so bounded by its limits."""

    def __init__(self, settings: CollabSettings) -> None:
        self._settings = settings
        self._sessions: dict[str, CollabSession] = {}

    def of(self, turn: Turn) -> CollabSession:
        """The turn's session, opened where it is new. A fork goes on from where its parent stands."""
        found = self._sessions.get(turn.session_id)
        if found is None:
            parent = self._sessions.get(turn.parent_id or "") if turn.evidence == "fork" else None
            trajectory = Trajectory(self._settings) if parent is None else parent.trajectory.fork()
            found = self._sessions[turn.session_id] = CollabSession(turn.session_id, trajectory)
        return found

    def get(self, session_id: str) -> CollabSession | None:
        return self._sessions.get(session_id)

    def gone(self, session_id: str) -> None:
        """No further turn is expected; one that comes all the same begins a new trajectory."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            session.stop_checking()
            session.stop_warming()

    def close(self) -> None:
        for session_id in list(self._sessions):
            self.gone(session_id)

    def __iter__(self) -> Iterator[CollabSession]:
        return iter(self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)


def _runs(task: asyncio.Task[None] | None) -> bool:
    return task is not None and not task.done()


def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
