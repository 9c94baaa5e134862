"""One live session: what the table knows of it, its state, and how it looks from outside."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from agentinfer.messages import Reply
from agentinfer.sessions.index import Key
from agentinfer.sessions.turns import SessionState, SessionView, Turn, TurnSnapshot

SESSION_BYTES: Final = 2048
"""Counted for a session besides its messages: its record, and its keys in the index."""


@dataclass(slots=True, eq=False)
class Session:
    """One session. Owned by a SessionTable; freed by expiry, by the limits, or by `abandon` of its only turn.

    `tool_names` and `pending_texts` are those of the tool calls that it waits for, since `replied_s`. `rewind_keys` are
    its keys for earlier turns in the content index.
    """

    session_id: str
    parent_id: str | None
    source: str
    created_s: float
    touched_s: float
    role: str | None = None
    is_finished: bool = False
    num_turns: int = 0
    running: dict[int, Turn] = field(default_factory=dict)
    snapshot: TurnSnapshot | None = None
    tool_names: tuple[str, ...] = ()
    pending_texts: tuple[str, ...] = ()
    replied_s: float = 0.0
    rewind_keys: deque[tuple[Key, ...]] = field(default_factory=deque)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    notes_bytes: int = 0

    @property
    def state(self) -> SessionState:
        """A turn under way outweighs all else; a finished session stays so until its next turn."""
        if self.running:
            return "running"
        if self.is_finished:
            return "finished"
        return "in_tool" if self.tool_names else "idle"

    @property
    def last_reply(self) -> Reply | None:
        """The latest reply, while its text is kept."""
        return self.snapshot.reply if self.snapshot is not None else None

    @property
    def holds_texts(self) -> bool:
        """True while the texts of the latest turn are kept."""
        return self.snapshot is not None and self.snapshot.messages is not None

    @property
    def size_bytes(self) -> int:
        """What the session is counted as holding."""
        return SESSION_BYTES + self.notes_bytes + (self.snapshot.size_bytes if self.snapshot is not None else 0)

    def view(self, now_s: float) -> SessionView:
        """What others may see of it."""
        return SessionView(
            session_id=self.session_id,
            parent_id=self.parent_id,
            source=self.source,
            role=self.role,
            state=self.state,
            num_turns=self.num_turns,
            num_running=len(self.running),
            tool_names=self.tool_names,
            age_s=now_s - self.created_s,
            idle_s=now_s - self.touched_s,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            num_messages=self.snapshot.num_messages if self.snapshot is not None else 0,
            texts_kept=self.holds_texts,
            notes=dict(self.notes),
        )
