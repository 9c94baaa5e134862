"""The sessions a server knows: which one a request belongs to, and what its turns do to it.

Lives on one event loop and is not thread-safe. Deterministic: time and ids are injected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from agentinfer.clock import Clock
from agentinfer.hints import SOURCE_OPENAI, AgentHints
from agentinfer.messages import Api, Conversation, Reply
from agentinfer.sessions.filing import file_failed_turn, file_turn, pending_texts, snapshot_of
from agentinfer.sessions.inference import NO_MATCH, Match, find_session
from agentinfer.sessions.session import Session
from agentinfer.sessions.store import SessionStore
from agentinfer.sessions.turns import Outcome, SessionState, SessionView, Turn, TurnSnapshot, TurnUsage

MAX_PARENT_CANDIDATES: Final = 256
MAX_TOOL_NAMES: Final = 16
MAX_NAME_CHARS: Final = 128


class SessionTable:
    """All sessions, within limits on their number and on the bytes of their last turns' texts: see SessionStore."""

    def __init__(
        self,
        max_sessions: int,
        expiry_s: float,
        clock: Clock,
        ids: Callable[[], str],
        max_bytes: int = 256 << 20,
        on_gone: Callable[[str], None] | None = None,
    ) -> None:
        """`on_gone` is called with the id of each session of which no further turn is expected: finished, closed, or
        forgotten. One that comes back is known by its next turn."""
        self._expiry_s = expiry_s
        self._clock = clock
        self._ids = ids
        self._on_gone = on_gone or (lambda session_id: None)
        self._store = SessionStore(max_sessions, max_bytes, self._on_gone)
        self._next_serial = 0

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
        self._store.touch(session, now_s)
        self._store.wait_for_tools(session, (), ())
        self._store.enforce_limits()
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
            session.prompt_tokens += usage.all_prompt_tokens
            session.cached_tokens += usage.all_cached_tokens
            session.completion_tokens += usage.completion_tokens
        if reply is not None and not reply.is_empty and outcome != "error":
            file_turn(self._store.index, session.session_id, turn.conversation, reply, session.rewind_keys)
            self._store.keep(session, snapshot_of(turn, reply, usage))
            if outcome == "ok":
                self._wait_for_tools(session, turn, reply)
        if outcome != "ok":
            file_failed_turn(self._store.index, session.session_id, turn.conversation)
        session.is_finished = session.is_finished or (turn.hints.last and outcome == "ok")
        session.replied_s = self._clock.monotonic_s()
        self._store.touch(session, session.replied_s)
        if session.state == "finished":
            self._on_gone(session.session_id)
        self._store.enforce_limits()

    def abandon(self, turn: Turn) -> None:
        """Forget a turn that was never served, such as a request the engine refused."""
        session = self._end(turn)
        if session is None:
            return
        if session.num_turns == turn.index + 1:
            session.num_turns = turn.index
        is_where_it_was = _turn_of(turn.continues) == _turn_of(session.snapshot)
        if turn.tool_names and not session.running and is_where_it_was:
            self._store.wait_for_tools(session, turn.tool_names, ())
        if session.snapshot is None and not session.running and not self._store.index.has(session.session_id):
            self._store.remove(session)
        self._store.enforce_limits()

    def close(self, session_id: str) -> bool:
        """Mark a session finished; False when there is none of that id. A later turn reopens it."""
        session = self._store.get(session_id)
        if session is None:
            return False
        if not session.is_finished:
            self._store.totals["closed"] += 1
        session.is_finished = True
        self._store.wait_for_tools(session, (), ())
        self._on_gone(session_id)
        return True

    def expire(self) -> tuple[str, ...]:
        """Drop the sessions that did nothing for `expiry_s`; their ids."""
        return self._store.expire(self._clock.monotonic_s() - self._expiry_s)

    def annotate(self, session_id: str, **notes: Any) -> None:
        """Set JSON fields that the session's view shows, such as a diagnosis. Ignored for an unknown session."""
        session = self._store.get(session_id)
        if session is not None:
            self._store.note(session, notes)
            self._store.enforce_limits()

    def get(self, session_id: str) -> SessionView | None:
        """The view of one session."""
        session = self._store.get(session_id)
        return None if session is None else session.view(self._clock.monotonic_s())

    def list(self) -> tuple[SessionView, ...]:
        """All views, most recently active first."""
        now_s = self._clock.monotonic_s()
        return tuple(session.view(now_s) for session in self._store)

    def counts(self) -> Mapping[SessionState, int]:
        """How many sessions are in each state."""
        return self._store.counts()

    @property
    def totals(self) -> Counter[str]:
        """Since the start: sessions ``begun``, ``expired``, ``evicted``, ``closed``; ``texts_dropped``."""
        return self._store.totals

    @property
    def size_bytes(self) -> int:
        """What the sessions are counted as holding."""
        return self._store.size_bytes

    def __len__(self) -> int:
        return len(self._store)

    def check_integrity(self) -> None:
        """Recompute every derived count; raises AssertionError naming the broken rule and the session."""
        self._store.check_integrity()

    def _session_for(self, hints: AgentHints, conversation: Conversation, now_s: float) -> tuple[Session, str]:
        named = self._store.get(hints.session) if hints.session is not None else None
        # prompt_cache_key is a session for some clients and shared by all sessions of an application for others: there
        # content decides first, and the key only where it cannot mix two sessions that are under way.
        is_shared_key = hints.source == SOURCE_OPENAI
        if named is not None and not is_shared_key:
            return named, "hint"
        if hints.session is not None and not is_shared_key:
            match = self._infer(conversation) if hints.parent is None else NO_MATCH
            parent_id = match.session_id if match.evidence == "sub_agent" else None
            return self._store.open(hints.session, hints.parent or parent_id, hints.source or "hint", now_s), "hint_new"
        match = self._infer(conversation)
        if match.session_id is not None and not match.is_fork:
            session = self._store[match.session_id]
            return session, "hint" if session is named else match.evidence
        if named is not None and not named.running and match is NO_MATCH and _has_reply(conversation):
            return named, "hint"
        parent_id = hints.parent or match.session_id
        if hints.session is not None and named is None:
            return self._store.open(hints.session, parent_id, hints.source or "hint", now_s), "hint_new"
        return self._store.open(self._unused_id(), parent_id, "inferred", now_s), match.evidence

    def _infer(self, conversation: Conversation) -> Match:
        waiting = self._store.waiting_for_tool(MAX_PARENT_CANDIDATES)
        return find_session(self._store.index, self._store.__getitem__, conversation, waiting)

    def _unused_id(self) -> str:
        while True:
            session_id = self._ids()
            if session_id not in self._store:
                return session_id

    def _end(self, turn: Turn) -> Session | None:
        session = self._store.get(turn.session_id)
        if session is None or session.running.get(turn.serial) is not turn:
            return None
        del session.running[turn.serial]
        return session

    def _wait_for_tools(self, session: Session, turn: Turn, reply: Reply) -> None:
        called = dict.fromkeys(call.name[:MAX_NAME_CHARS] for call in reply.tool_calls)
        hinted = (turn.hints.tool,) if turn.hints.tool is not None else ()
        names = tuple(islice(called, MAX_TOOL_NAMES)) or hinted
        if session.is_finished or turn.hints.last:
            names = ()
        self._store.wait_for_tools(session, names, pending_texts(reply))


def _turn_of(snapshot: TurnSnapshot | None) -> int | None:
    return None if snapshot is None else snapshot.turn


def _has_reply(conversation: Conversation) -> bool:
    return conversation.prompt is None and any(message.role == "assistant" for message in conversation.messages)
