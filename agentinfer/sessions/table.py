"""The sessions a server knows: begun and finished turns, states, and what memory they may take.

Lives on one event loop and is not thread-safe. Deterministic: time and ids are injected.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

import orjson

from agentinfer.clock import Clock
from agentinfer.hints import SOURCE_OPENAI, AgentHints
from agentinfer.messages import Api, Conversation, Reply
from agentinfer.sessions.filing import file_failed_turn, file_turn, pending_texts, snapshot_of
from agentinfer.sessions.index import ContentIndex
from agentinfer.sessions.inference import NO_MATCH, Match, find_session
from agentinfer.sessions.session import Session
from agentinfer.sessions.turns import SESSION_STATES, Outcome, SessionState, SessionView, Turn, TurnSnapshot, TurnUsage

MAX_PARENT_CANDIDATES: Final = 256
MAX_TOOL_NAMES: Final = 16
MAX_NAME_CHARS: Final = 128


class SessionTable:
    """All sessions, at most `max_sessions` and the texts of their last turns within about `max_bytes`.

    Over a limit the least recently used give way, first their texts (they are still recognised, by digest), then they
    themselves. A session with a turn under way never gives way, so the limits can be exceeded by what is running.
    """

    def __init__(
        self,
        max_sessions: int,
        expiry_s: float,
        clock: Clock,
        ids: Callable[[], str],
        max_bytes: int = 256 << 20,
    ) -> None:
        self._max_sessions = max_sessions
        self._expiry_s = expiry_s
        self._clock = clock
        self._ids = ids
        self._max_bytes = max_bytes
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # least recently used first
        self._with_texts: OrderedDict[str, None] = OrderedDict()  # sessions whose snapshot holds texts, same order
        self._in_tool: OrderedDict[str, None] = OrderedDict()  # sessions with pending tools, longest waiting first
        self._index = ContentIndex()
        self._size_bytes = 0
        self._next_serial = 0
        self.totals: Counter[str] = Counter()
        """Since the start: sessions ``begun``, ``expired``, ``evicted``, ``closed``; ``texts_dropped``."""

    def begin_turn(self, hints: AgentHints, conversation: Conversation, api: Api | None = None) -> Turn:
        """Find or open the session of a request that has arrived. `api` defaults to the conversation's."""
        self.expire()
        now_s = self._clock.monotonic_s()
        session, evidence = self._session_for(hints, conversation, now_s)
        gap_s = now_s - session.replied_s if session.tool_names else None
        snapshot = session.snapshot
        turn = Turn(
            session_id=session.session_id,
            index=session.num_turns if hints.turn is None else hints.turn,
            parent_id=session.parent_id,
            inferred=evidence not in ("hint", "hint_new"),
            evidence=evidence,
            continues=snapshot,
            tool_gap_s=gap_s,
            tool_names=session.tool_names,
            num_kept=snapshot.num_kept_in(conversation) if snapshot is not None else 0,
            hints=hints,
            conversation=conversation,
            api=api or conversation.api,
            started_s=now_s,
            serial=self._next_serial,
        )
        self._next_serial += 1
        session.num_turns = turn.index + 1
        session.role = hints.role or session.role
        session.is_finished = False
        session.running[turn.serial] = turn
        self._touch(session, now_s)
        self._clear_tools(session)
        self._enforce_limits()
        return turn

    def finish_turn(self, turn: Turn, reply: Reply | None, usage: TurnUsage | None, outcome: Outcome) -> None:
        """End a turn after its last byte went out. Ending one that has ended already changes nothing.

        A reply that was cut off still moves the session on, because clients keep what they saw; without any reply the
        session stays where it was, and the same request again will be its retry.
        """
        session = self._end(turn)
        if session is None:
            return
        if usage is not None:
            session.prompt_tokens += usage.prompt_tokens
            session.cached_tokens += usage.cached_tokens
            session.completion_tokens += usage.completion_tokens
        if reply is not None and not reply.is_empty and outcome != "error":
            file_turn(self._index, session.session_id, turn.conversation, reply, session.rewind_keys)
            self._keep(session, snapshot_of(turn, reply, usage))
            if outcome == "ok":
                self._wait_for_tools(session, turn, reply)
        if outcome != "ok":
            file_failed_turn(self._index, session.session_id, turn.conversation)
        session.is_finished = session.is_finished or (turn.hints.last and outcome == "ok")
        session.replied_s = self._clock.monotonic_s()
        self._touch(session, session.replied_s)
        self._enforce_limits()

    def abandon(self, turn: Turn) -> None:
        """Forget a turn that was never served, such as a request the engine refused."""
        session = self._end(turn)
        if session is None:
            return
        if session.num_turns == turn.index + 1:
            session.num_turns = turn.index
        is_where_it_was = _turn_of(turn.continues) == _turn_of(session.snapshot)
        if turn.tool_names and not session.running and is_where_it_was:
            session.tool_names = turn.tool_names
            self._in_tool[session.session_id] = None
        if session.snapshot is None and not session.running and not self._index.has(session.session_id):
            self._remove(session)
        self._enforce_limits()

    def close(self, session_id: str) -> bool:
        """Mark a session finished; False when there is none of that id. A later turn reopens it."""
        session = self._sessions.get(session_id)
        if session is None:
            return False
        if not session.is_finished:
            self.totals["closed"] += 1
        session.is_finished = True
        self._clear_tools(session)
        return True

    def expire(self) -> tuple[str, ...]:
        """Drop the sessions that did nothing for `expiry_s`; their ids."""
        horizon_s = self._clock.monotonic_s() - self._expiry_s
        expired = []
        for session in self._sessions.values():
            if session.touched_s > horizon_s:
                break
            if not session.running:
                expired.append(session)
        for session in expired:
            self._remove(session)
        self.totals["expired"] += len(expired)
        return tuple(session.session_id for session in expired)

    def annotate(self, session_id: str, **notes: Any) -> None:
        """Set JSON fields that the session's view shows, such as a diagnosis. Ignored for an unknown session."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.notes.update(notes)
            before = session.notes_bytes
            session.notes_bytes = len(orjson.dumps(session.notes, default=repr))
            self._size_bytes += session.notes_bytes - before
            self._enforce_limits()

    def get(self, session_id: str) -> SessionView | None:
        """The view of one session."""
        session = self._sessions.get(session_id)
        return None if session is None else session.view(self._clock.monotonic_s())

    def list(self) -> tuple[SessionView, ...]:
        """All views, most recently active first."""
        now_s = self._clock.monotonic_s()
        return tuple(session.view(now_s) for session in reversed(self._sessions.values()))

    def counts(self) -> Mapping[SessionState, int]:
        """How many sessions are in each state."""
        counts: Counter[SessionState] = Counter(session.state for session in self._sessions.values())
        return {state: counts[state] for state in SESSION_STATES}

    @property
    def size_bytes(self) -> int:
        """What the sessions are counted as holding."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._sessions)

    def check_integrity(self) -> None:
        """Recompute every derived count; raises AssertionError naming the broken rule and the session."""
        self._index.check_integrity()
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
        _require(
            size_bytes == self._size_bytes, "table", f"counts {self._size_bytes} bytes, sessions hold {size_bytes}"
        )
        _require(set(self._with_texts) <= set(self._sessions), "table", "lists texts of a session that is gone")
        _require(set(self._in_tool) <= set(self._sessions), "table", "lists a session in_tool that is gone")
        _require(self._index.sessions() <= set(self._sessions), "table", "indexes a session that is gone")
        num_idle = sum(not session.running for session in self._sessions.values())
        _require(len(self) <= self._max_sessions or num_idle == 0, "table", "holds too many sessions")
        _require(self._size_bytes <= self._max_bytes or num_idle == 0, "table", "holds too many bytes")

    def _session_for(self, hints: AgentHints, conversation: Conversation, now_s: float) -> tuple[Session, str]:
        named = self._sessions.get(hints.session) if hints.session is not None else None
        # prompt_cache_key is a session for some clients and shared by all sessions of an application for others: there
        # content decides first, and the key only where it cannot mix two sessions that are under way.
        is_shared_key = hints.source == SOURCE_OPENAI
        if named is not None and not is_shared_key:
            return named, "hint"
        if hints.session is not None and not is_shared_key:
            match = self._infer(conversation) if hints.parent is None else NO_MATCH
            parent_id = match.session_id if match.evidence == "sub_agent" else None
            return self._open(hints.session, hints.parent or parent_id, hints.source or "hint", now_s), "hint_new"
        match = self._infer(conversation)
        if match.session_id is not None and not match.is_fork:
            session = self._sessions[match.session_id]
            return session, "hint" if session is named else match.evidence
        if named is not None and not named.running and match is NO_MATCH and _has_reply(conversation):
            return named, "hint"
        parent_id = hints.parent or match.session_id
        if hints.session is not None and named is None:
            return self._open(hints.session, parent_id, hints.source or "hint", now_s), "hint_new"
        return self._open(self._unused_id(), parent_id, "inferred", now_s), match.evidence

    def _infer(self, conversation: Conversation) -> Match:
        waiting = islice(reversed(self._in_tool), MAX_PARENT_CANDIDATES)
        return find_session(self._index, self._sessions.__getitem__, conversation, waiting)

    def _unused_id(self) -> str:
        while True:
            session_id = self._ids()
            if session_id not in self._sessions:
                return session_id

    def _open(self, session_id: str, parent_id: str | None, source: str, now_s: float) -> Session:
        session = Session(session_id, parent_id, source, created_s=now_s, touched_s=now_s)
        self._sessions[session_id] = session
        self._size_bytes += session.size_bytes
        self.totals["begun"] += 1
        return session

    def _end(self, turn: Turn) -> Session | None:
        session = self._sessions.get(turn.session_id)
        if session is None or session.running.get(turn.serial) is not turn:
            return None
        del session.running[turn.serial]
        return session

    def _touch(self, session: Session, now_s: float) -> None:
        session.touched_s = now_s
        self._sessions.move_to_end(session.session_id)
        if session.session_id in self._with_texts:
            self._with_texts.move_to_end(session.session_id)

    def _wait_for_tools(self, session: Session, turn: Turn, reply: Reply) -> None:
        names = dict.fromkeys(call.name[:MAX_NAME_CHARS] for call in reply.tool_calls)
        hinted = (turn.hints.tool,) if turn.hints.tool is not None else ()
        session.tool_names = tuple(islice(names, MAX_TOOL_NAMES)) or hinted
        session.pending_texts = pending_texts(reply)
        if session.tool_names and not session.is_finished and not turn.hints.last:
            self._in_tool[session.session_id] = None
        else:
            self._clear_tools(session)

    def _clear_tools(self, session: Session) -> None:
        session.tool_names = ()
        session.pending_texts = ()
        self._in_tool.pop(session.session_id, None)

    def _keep(self, session: Session, snapshot: TurnSnapshot) -> None:
        before = session.size_bytes
        session.snapshot = snapshot
        self._size_bytes += session.size_bytes - before
        if session.holds_texts:
            self._with_texts[session.session_id] = None
            self._with_texts.move_to_end(session.session_id)
        else:
            self._with_texts.pop(session.session_id, None)

    def _remove(self, session: Session) -> None:
        del self._sessions[session.session_id]
        self._with_texts.pop(session.session_id, None)
        self._in_tool.pop(session.session_id, None)
        self._index.remove_session(session.session_id)
        self._size_bytes -= session.size_bytes

    def _enforce_limits(self) -> None:
        while self._size_bytes > self._max_bytes and self._with_texts:
            session = self._sessions[next(iter(self._with_texts))]
            assert session.snapshot is not None
            self._keep(session, session.snapshot.without_texts())
            self.totals["texts_dropped"] += 1
        if len(self._sessions) <= self._max_sessions and self._size_bytes <= self._max_bytes:
            return
        for session in [session for session in self._sessions.values() if not session.running]:
            if len(self._sessions) <= self._max_sessions and self._size_bytes <= self._max_bytes:
                return
            self._remove(session)
            self.totals["evicted"] += 1


def _turn_of(snapshot: TurnSnapshot | None) -> int | None:
    return None if snapshot is None else snapshot.turn


def _has_reply(conversation: Conversation) -> bool:
    return conversation.prompt is None and any(message.role == "assistant" for message in conversation.messages)


def _require(holds: bool, what: str, rule: str) -> None:
    if not holds:
        raise AssertionError(f"SessionTable: {what}: {rule}")
