"""Which session a request continues, from what it says; reads a ContentIndex and the sessions' states, keeps nothing.

From the strongest evidence to the weakest; the first that holds decides:

1. ``previous_response_id`` names one of our responses.
2. The request extends, up to its last assistant message, what a session asked and we replied.
3. The last assistant message is our reply and the one before it is what was asked last, but something earlier was
   edited (a clock in the system prompt, old tool results cut); or it repeats one of our tool calls, id included.
4. The client rewrote our reply: what a session asked is extended by some other assistant message.
5. As 2 and 4 for an earlier assistant message: a rewind, or messages that others wrote.
6. It repeats a request that failed or whose client went away.
7. A user message carries text that a session waiting for its tool passed to that tool: a sub-agent, so a child.

What extends a session that is running at the moment, or goes back behind the latest turn of one that waits for a tool,
forks it into a child: one session never has two histories. A first request that merely repeats another session's first
request is a new session, because that is what the same task run twice looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import orjson

from agentinfer.messages import Conversation, Message, Reply, ToolCall, canonical_digest
from agentinfer.sessions.index import ContentIndex, Point, prompt_key
from agentinfer.sessions.turns import SessionState

MIN_TASK_CHARS: Final = 32
"""Shorter texts occur in tool arguments by chance."""


class Candidate(Protocol):
    """What inference asks about a session."""

    @property
    def state(self) -> SessionState: ...

    @property
    def last_reply(self) -> Reply | None:
        """The latest reply, while its text is kept."""
        ...

    @property
    def pending_texts(self) -> tuple[str, ...]:
        """Long texts in the arguments of the tool calls the session waits for."""
        ...


@dataclass(frozen=True, slots=True)
class Match:
    """Continue `session_id`; or, with `is_fork`, open a child of it. Neither when it is None: a new session."""

    session_id: str | None
    is_fork: bool
    evidence: str


NO_MATCH: Final = Match(None, False, "new")


def find_session(
    index: ContentIndex,
    candidate: Callable[[str], Candidate],
    conversation: Conversation,
    waiting_for_tool: Iterable[str],
) -> Match:
    """The session that `conversation` continues or forks.

    `waiting_for_tool` lists the sessions in_tool, most recent first; it is walked only when nothing else matched.
    """
    found = _by_response_id(index, candidate, conversation)
    if found is None and conversation.previous_response_id is None:
        if conversation.prompt is not None:
            found = _by_prompt(index, candidate, conversation.prompt)
        else:
            found = _by_messages(index, candidate, conversation)
    if found is None:
        found = _by_task(candidate, conversation, waiting_for_tool)
    return found or NO_MATCH


def _by_response_id(
    index: ContentIndex, candidate: Callable[[str], Candidate], conversation: Conversation
) -> Match | None:
    if conversation.previous_response_id is None:
        return None
    digest = conversation.previous_response_id.encode("utf-8", "surrogatepass")
    return _latest(index.find(Point.RESPONSE, digest), candidate, "response_id") or _earlier(
        index.find(Point.EARLIER_RESPONSE, digest), candidate
    )


def _by_messages(
    index: ContentIndex, candidate: Callable[[str], Candidate], conversation: Conversation
) -> Match | None:
    messages, chain = conversation.messages, conversation.chain
    if not messages:
        return None
    replies = [position for position in range(1, len(messages)) if messages[position].role == "assistant"]
    if replies:
        found = (
            _exact(index, candidate, chain[replies[-1]])
            or _joint(index, candidate, messages, replies[-1])
            or _rewritten(index, candidate, conversation, replies[-1])
        )
        if found is not None:
            return found
    retried = _latest(index.find(Point.RETRY, chain[-1]), candidate, "retry")
    if retried is not None:
        return retried
    for position in reversed(replies[:-1]):
        found = _exact(index, candidate, chain[position]) or _rewritten(index, candidate, conversation, position)
        if found is not None:
            return found
    return None


def _exact(index: ContentIndex, candidate: Callable[[str], Candidate], link: bytes) -> Match | None:
    """Sessions that stand, or stood, just after the messages up to `link`."""
    return _latest(index.find(Point.REPLIED, link), candidate, "reply") or _earlier(
        index.find(Point.EARLIER, link), candidate
    )


def _rewritten(
    index: ContentIndex, candidate: Callable[[str], Candidate], conversation: Conversation, position: int
) -> Match | None:
    """Sessions that asked what stands before the assistant message at `position`; the one whose reply it resembles."""
    message = conversation.messages[position]
    asked = index.find(Point.ASKED, conversation.chain[position - 1])
    alike = sorted(asked, key=lambda session: -_likeness(candidate(session), message))
    return _latest(alike, candidate, "edited_reply")


def _joint(
    index: ContentIndex, candidate: Callable[[str], Candidate], messages: tuple[Message, ...], position: int
) -> Match | None:
    message = messages[position]
    found = _latest(
        index.find(Point.JOINT, messages[position - 1].digest + message.digest), candidate, "edited_beginning"
    )
    if found is not None:
        return found
    for call in message.tool_calls:
        sessions = index.find(Point.CALL, call_key(call))
        if len(sessions) == 1:
            return _latest(sessions, candidate, "tool_call")
    return None


def call_key(call: ToolCall) -> bytes:
    """Equal for one tool call however its arguments are serialised.

    The id alone would not do: some models number their calls, so that every session has a ``functions.bash:0``.
    """
    arguments: object = call.arguments_text
    with suppress(orjson.JSONDecodeError):
        arguments = orjson.loads(call.arguments_text)
    return canonical_digest([call.id, call.name, arguments])


def _by_prompt(index: ContentIndex, candidate: Callable[[str], Candidate], prompt: bytes) -> Match | None:
    for length, digest in index.prompt_prefixes(prompt):
        key = prompt_key(length, digest)
        if length == len(prompt):
            found = _latest(index.find(Point.RETRY, key), candidate, "retry")
        else:
            found = _latest(index.find(Point.REPLIED, key), candidate, "reply")
        found = found or _earlier(index.find(Point.EARLIER, key), candidate)
        if found is None and length < len(prompt):
            # Any longer prompt extends this one, a reply apart: believable only when a single session asked it.
            asked = index.find(Point.ASKED, key)
            found = _latest(asked, candidate, "edited_reply") if len(asked) == 1 else None
        if found is not None:
            return found
    return None


def _by_task(
    candidate: Callable[[str], Candidate], conversation: Conversation, waiting_for_tool: Iterable[str]
) -> Match | None:
    texts = [message.text for message in conversation.messages if message.role == "user"]
    texts = [text for text in (*texts[:1], *texts[1:][-1:]) if len(text) >= MIN_TASK_CHARS]
    if texts:
        for session in waiting_for_tool:
            for argument in candidate(session).pending_texts:
                if any(argument in text or text in argument for text in texts):
                    return Match(session, True, "sub_agent")
    return None


def _latest(sessions: Iterable[str], candidate: Callable[[str], Candidate], evidence: str) -> Match | None:
    """The first session that is free to go on; a fork of the first when all are running."""
    first = None
    for session in sessions:
        first = first or session
        if candidate(session).state != "running":
            return Match(session, False, evidence)
    return None if first is None else Match(first, True, "fork")


def _earlier(sessions: Iterable[str], candidate: Callable[[str], Candidate]) -> Match | None:
    first = None
    for session in sessions:
        first = first or session
        if candidate(session).state in ("idle", "finished"):
            return Match(session, False, "rewind")
    return None if first is None else Match(first, True, "fork")


def _likeness(session: Candidate, message: Message) -> int:
    """How much an assistant message looks like the session's reply after a client rewrote it; 0 not at all."""
    reply = session.last_reply
    if reply is None:
        return 0
    ids = {call.id for call in reply.tool_calls if call.id}
    if ids & {call.id for call in message.tool_calls}:
        return 4
    calls = [(call.name, call.arguments_text) for call in reply.tool_calls]
    if calls and calls == [(call.name, call.arguments_text) for call in message.tool_calls]:
        return 3
    ours, theirs = reply.text.strip(), message.text.strip()
    if ours and theirs:
        if ours == theirs:
            return 3
        if theirs in ours or ours in theirs:
            return 2
    names = [call.name for call in reply.tool_calls]
    return 1 if names and names == [call.name for call in message.tool_calls] else 0
