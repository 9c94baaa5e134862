"""What of a finished turn is filed: its keys in the content index, its snapshot, and the texts it gave to tools."""

from __future__ import annotations

from collections import deque
from typing import Final

import orjson

from agentinfer.messages import Conversation, Reply, chained, token_bytes, utf8
from agentinfer.sessions.index import ContentIndex, Key, Point, PromptPoint, prompt_key, prompt_point
from agentinfer.sessions.inference import MIN_TASK_CHARS, call_key
from agentinfer.sessions.turns import Turn, TurnSnapshot, TurnUsage

MAX_REWIND_TURNS: Final = 16
"""A rewind further back than this opens a new session. Bounds the keys a session holds in the index."""
MAX_CALL_KEYS: Final = 8
MAX_PENDING_TEXTS: Final = 8
MAX_PENDING_CHARS: Final = 2048
MAX_ARGUMENT_CHARS: Final = 1 << 20


def file_turn(
    index: ContentIndex,
    session_id: str,
    conversation: Conversation,
    reply: Reply,
    rewind_keys: deque[tuple[Key, ...]],
) -> None:
    """File a session where this turn left it; where it stood before becomes a point to rewind to.

    `rewind_keys` are the session's EARLIER keys by turn, oldest first; it is updated.
    """
    _turn_latest_into_earlier(index, session_id, rewind_keys)
    if conversation.prompt is not None:
        index.add_prompt(session_id, Point.ASKED, prompt_point(conversation.prompt))
        index.add_prompt(session_id, Point.REPLIED, prompt_point(_continued(conversation, reply)))
    elif conversation.chain:
        asked, replied = conversation.chain[-1], reply.message.digest
        if conversation.previous_response_id is None:
            index.add(session_id, (Point.ASKED, asked))
            index.add(session_id, (Point.REPLIED, chained(asked, replied)))
        index.add(session_id, (Point.JOINT, conversation.messages[-1].digest + replied))
        for call in reply.tool_calls[:MAX_CALL_KEYS]:
            if call.id:
                index.add(session_id, (Point.CALL, call_key(call)))
    if conversation.api == "responses" and reply.response_id:
        index.add(session_id, (Point.RESPONSE, utf8(reply.response_id)))


def file_failed_turn(index: ContentIndex, session_id: str, conversation: Conversation) -> None:
    """File a request that got no whole answer, so that its repetition is taken for a retry. One a session is kept."""
    for key in tuple(index.keys_of(session_id)):
        if key[0] is Point.RETRY:
            index.discard(session_id, key)
    if conversation.prompt is not None:
        index.add_prompt(session_id, Point.RETRY, prompt_point(conversation.prompt))
    elif conversation.chain:
        index.add(session_id, (Point.RETRY, conversation.chain[-1]))


def snapshot_of(turn: Turn, reply: Reply, usage: TurnUsage | None) -> TurnSnapshot:
    """What is kept of a turn that `reply` ended."""
    conversation = turn.conversation
    texts_bytes = sum(message.size_bytes for message in conversation.messages) + reply.message.size_bytes
    if conversation.prompt is not None:
        texts_bytes += 8 * len(reply.token_ids or ())
    return TurnSnapshot(
        turn=turn.index,
        digests=b"".join(message.digest for message in conversation.messages),
        reply_digest=reply.message.digest,
        tools_digest=conversation.tools_digest,
        is_partial=conversation.previous_response_id is not None,
        is_prompt=conversation.prompt is not None,
        usage=usage,
        texts_bytes=texts_bytes,
        messages=conversation.messages,
        reply=reply,
    )


def pending_texts(reply: Reply) -> tuple[str, ...]:
    """Beginnings of the long strings in the arguments of the reply's tool calls: what a sub-agent may be told."""
    texts: list[str] = []
    for call in reply.tool_calls[:MAX_CALL_KEYS]:
        if len(call.arguments_text) > MAX_ARGUMENT_CHARS:
            continue
        try:
            arguments = orjson.loads(call.arguments_text)
        except orjson.JSONDecodeError:
            arguments = call.arguments_text
        for value in arguments.values() if isinstance(arguments, dict) else (arguments,):
            if isinstance(value, str) and len(value) >= MIN_TASK_CHARS and len(texts) < MAX_PENDING_TEXTS:
                texts.append(value[:MAX_PENDING_CHARS])
    return tuple(texts)


def _turn_latest_into_earlier(index: ContentIndex, session_id: str, rewind_keys: deque[tuple[Key, ...]]) -> None:
    earlier: list[Key] = []
    for key in tuple(index.keys_of(session_id)):
        point, digest = key
        replacement = _EARLIER.get(point)
        if point in (Point.EARLIER, Point.EARLIER_RESPONSE):
            continue
        prefix = index.prompt_point(session_id, key)
        index.discard(session_id, key)
        if replacement is not None:
            _file(index, session_id, (replacement, digest), prefix)
            earlier.append((replacement, digest))
    if earlier:
        rewind_keys.append(tuple(earlier))
    while len(rewind_keys) > MAX_REWIND_TURNS:
        for key in rewind_keys.popleft():
            if not any(key in keys for keys in rewind_keys):
                index.discard(session_id, key)


def _file(index: ContentIndex, session_id: str, key: Key, prefix: PromptPoint | None) -> None:
    if prefix is None:
        index.add(session_id, key)
    else:
        assert prompt_key(prefix.length, prefix.digest) == key[1]
        index.add_prompt(session_id, key[0], prefix)


def _continued(conversation: Conversation, reply: Reply) -> bytes:
    """The prompt a client would send to go on after `reply`."""
    prompt = conversation.prompt
    assert prompt is not None
    if conversation.prompt_kind == "token_ids":
        return prompt + (token_bytes(reply.token_ids or ()) or b"")
    return utf8(reply.text) if conversation.echo else prompt + utf8(reply.text)


_EARLIER: Final = {Point.REPLIED: Point.EARLIER, Point.RESPONSE: Point.EARLIER_RESPONSE}
