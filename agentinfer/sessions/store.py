"""The sessions held in memory: in order of use, with what is counted over them, within limits.

Knows nothing of requests; `SessionTable` decides what becomes of a session. Owns the sessions and their content index.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import orjson

from agentinfer.sessions.index import ContentIndex
from agentinfer.sessions.session import Session
from agentinfer.sessions.turns import SESSION_STATES, SessionState, TurnSnapshot


class SessionStore:
    """At most `max_sessions`, and the texts of their last turns within about `max_bytes`.

    Over a limit the least recently used give way, first their texts (they are still recognised, by digest), then they
    themselves. A session with a turn under way never gives way, so the limits can be exceeded by what is running.
    """

    def __init__(self, max_sessions: int, max_bytes: int, on_removed: Callable[[str], None] | None = None) -> None:
        """`on_removed` is called with the id of each session that is forgotten, for whatever reason."""
        self.index = ContentIndex()
        self.totals: Counter[str] = Counter()
        """Since the start: sessions ``begun``, ``expired``, ``evicted``, ``closed``; ``texts_dropped``."""
        self.size_bytes = 0
        """What the sessions are counted as holding."""
        self._max_sessions = max_sessions
        self._max_bytes = max_bytes
        self._on_removed = on_removed
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # least recently used first
        self._with_texts: OrderedDict[str, None] = OrderedDict()  # sessions whose snapshot holds texts, same order
        self._in_tool: OrderedDict[str, None] = OrderedDict()  # sessions with pending tools, longest waiting first

    def __getitem__(self, session_id: str) -> Session:
        return self._sessions[session_id]

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def __iter__(self) -> Iterator[Session]:
        """Most recently used first."""
        return reversed(self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session_id: str) -> Session | None:
        """The session of that id."""
        return self._sessions.get(session_id)

    def waiting_for_tool(self, limit: int) -> Iterator[str]:
        """Ids of the sessions in_tool, most recent first."""
        return islice(reversed(self._in_tool), limit)

    def counts(self) -> Mapping[SessionState, int]:
        """How many sessions are in each state."""
        counts: Counter[SessionState] = Counter(session.state for session in self._sessions.values())
        return {state: counts[state] for state in SESSION_STATES}

    def open(self, session_id: str, parent_id: str | None, source: str, now_s: float) -> Session:
        """A new session under an id that is not in use."""
        session = Session(session_id, parent_id, source, created_s=now_s, touched_s=now_s)
        self._sessions[session_id] = session
        self.size_bytes += session.size_bytes
        self.totals["begun"] += 1
        return session

    def touch(self, session: Session, now_s: float) -> None:
        """Make a session the most recently used."""
        session.touched_s = now_s
        self._sessions.move_to_end(session.session_id)
        if session.session_id in self._with_texts:
            self._with_texts.move_to_end(session.session_id)

    def keep(self, session: Session, snapshot: TurnSnapshot) -> None:
        """Replace the session's snapshot."""
        before = session.size_bytes
        session.snapshot = snapshot
        self.size_bytes += session.size_bytes - before
        if session.holds_texts:
            self._with_texts[session.session_id] = None
            self._with_texts.move_to_end(session.session_id)
        else:
            self._with_texts.pop(session.session_id, None)

    def note(self, session: Session, notes: Mapping[str, Any]) -> None:
        """Add to the JSON fields that the session's view shows."""
        session.notes.update(notes)
        before = session.notes_bytes
        session.notes_bytes = len(orjson.dumps(session.notes, default=repr))
        self.size_bytes += session.notes_bytes - before

    def wait_for_tools(self, session: Session, names: tuple[str, ...], texts: tuple[str, ...]) -> None:
        """The session waits for these tools, to which its reply passed `texts`; for nothing when there are none."""
        session.tool_names = names
        session.pending_texts = texts if names else ()
        if names:
            self._in_tool[session.session_id] = None
        else:
            self._in_tool.pop(session.session_id, None)

    def remove(self, session: Session) -> None:
        """Forget a session and its keys."""
        del self._sessions[session.session_id]
        self._with_texts.pop(session.session_id, None)
        self._in_tool.pop(session.session_id, None)
        self.index.remove_session(session.session_id)
        self.size_bytes -= session.size_bytes
        if self._on_removed is not None:
            self._on_removed(session.session_id)

    def expire(self, horizon_s: float) -> tuple[str, ...]:
        """Remove the sessions last used at or before `horizon_s` that are not running; their ids."""
        expired = []
        for session in self._sessions.values():
            if session.touched_s > horizon_s:
                break
            if not session.running:
                expired.append(session)
        for session in expired:
            self.remove(session)
        self.totals["expired"] += len(expired)
        return tuple(session.session_id for session in expired)

    def enforce_limits(self) -> None:
        """Make the least recently used give way until the limits hold, or nothing idle is left."""
        while self.size_bytes > self._max_bytes and self._with_texts:
            session = self._sessions[next(iter(self._with_texts))]
            assert session.snapshot is not None
            self.keep(session, session.snapshot.without_texts())
            self.totals["texts_dropped"] += 1
        if self._is_within_limits:
            return
        for session in [session for session in self._sessions.values() if not session.running]:
            if self._is_within_limits:
                return
            self.remove(session)
            self.totals["evicted"] += 1

    @property
    def _is_within_limits(self) -> bool:
        return len(self._sessions) <= self._max_sessions and self.size_bytes <= self._max_bytes

    def check_integrity(self) -> None:
        """Recompute every derived count; raises AssertionError naming the broken rule and the session."""
        self.index.check_integrity()
        size_bytes, last_touched_s = 0, float("-inf")
        for session_id, session in self._sessions.items():
            _require(session.session_id == session_id, session_id, "must be filed under its own id")
            _require(session.touched_s >= last_touched_s, session_id, "must be in the order of last use")
            last_touched_s = session.touched_s
            size_bytes += session.size_bytes
            is_listed = session_id in self._with_texts
            _require(session.holds_texts == is_listed, session_id, "must be listed while texts are held")
            is_listed = session_id in self._in_tool
            _require(bool(session.tool_names) == is_listed, session_id, "must be listed while tools are pending")
            _require(bool(session.pending_texts) <= bool(session.tool_names), session_id, "texts need a pending tool")
            for serial, turn in session.running.items():
                _require(turn.serial == serial and turn.session_id == session_id, session_id, "runs a foreign turn")
        counted = f"counts {self.size_bytes} bytes, sessions hold {size_bytes}"
        _require(size_bytes == self.size_bytes, "store", counted)
        _require(set(self._with_texts) <= set(self._sessions), "store", "lists texts of a session that is gone")
        _require(set(self._in_tool) <= set(self._sessions), "store", "lists a session in_tool that is gone")
        _require(self.index.sessions() <= set(self._sessions), "store", "indexes a session that is gone")
        num_idle = sum(not session.running for session in self._sessions.values())
        _require(len(self) <= self._max_sessions or num_idle == 0, "store", "holds too many sessions")
        _require(self.size_bytes <= self._max_bytes or num_idle == 0, "store", "holds too many bytes")


def _require(holds: bool, what: str, rule: str) -> None:
    if not holds:
        raise AssertionError(f"SessionStore: {what}: {rule}")
