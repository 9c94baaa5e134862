"""Fitting recorded sessions into a context window: long messages are clipped, and turns go from the tail, never inside.

Dropping from the middle would change what later prompts share with earlier ones, which is what a replay measures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

from agentinfer.errors import TraceError
from agentinfer.replay.render import map_messages
from agentinfer.replay.session import Message, Session, Turn, text_of
from agentinfer.replay.tokens import TokenCounter

_CLIPPED_ROLES = ("user", "tool")


@dataclass(frozen=True, slots=True)
class Limits:
    """None means no limit. `context_tokens` bounds prompt and reply together, as the server's window does."""

    context_tokens: int | None = None
    message_tokens: int | None = None
    turns: int | None = None


@dataclass(frozen=True, slots=True)
class Fitted:
    """A session after the limits, and what they took: turns off its tail, messages shortened."""

    session: Session
    dropped_turns: int
    clipped_messages: int


async def fit(session: Session, limits: Limits, counter: TokenCounter, reply_tokens: int | None = None) -> Fitted:
    """Apply all limits, with room for a reply of `reply_tokens`, or for the recorded one where that is None.

    Raises TraceError when not even the first turn fits, naming the limits to change.
    """
    recorded_turns = len(session.turns)
    clipped = 0
    if limits.turns is not None:
        session = replace(session, turns=session.turns[: limits.turns])
    if limits.message_tokens is not None:
        session, clipped = await _clip(session, limits.message_tokens, counter)
    if limits.context_tokens is not None:
        turns = await _fitting_turns(session, limits.context_tokens, counter, reply_tokens)
        if turns == 0:
            raise TraceError(
                f"session {session.id}: its first turn does not fit into {limits.context_tokens} tokens; raise "
                "--max-context, or shorten long messages with --max-message-tokens"
            )
        session = replace(session, turns=session.turns[:turns])
    return Fitted(session, recorded_turns - len(session.turns), clipped)


async def _fitting_turns(session: Session, budget: int, counter: TokenCounter, reply_tokens: int | None) -> int:
    messages = list(session.messages)
    totals = [0, *accumulate(await counter.count_messages(messages))]
    tools = counter.estimate_tools(session.tool_schemas)

    async def room(turn: Turn) -> int:
        return (await counter.count_messages([turn.reply]))[0] if reply_tokens is None else reply_tokens

    kept = 0
    for turn in session.turns:
        # Turns of a trace that rewinds are no prefix of the whole conversation: count theirs one by one.
        is_prefix = len(turn.prompt) < len(messages) and messages[len(turn.prompt)] is turn.reply
        prompt = totals[len(turn.prompt)] if is_prefix else sum(await counter.count_messages(turn.prompt))
        if prompt + tools + await room(turn) > budget:
            break
        kept += 1
    # The sum is above or below the template's true rendering by a few tokens a message: settle the end exactly.
    while kept:
        turn = session.turns[kept - 1]
        exact = await counter.count_chat(turn.prompt, session.tool_schemas)
        if exact is None or exact + await room(turn) <= budget:
            break
        kept -= 1
    return kept


async def _clip(session: Session, limit: int, counter: TokenCounter) -> tuple[Session, int]:
    """Head and tail of long tool outputs and user messages stay: agents' tools cut output the same way."""
    messages = list(session.messages)
    counts = dict(zip(map(id, messages), await counter.count_messages(messages), strict=True))
    clipped = 0

    def change(message: Message) -> Message:
        nonlocal clipped
        tokens = counts.get(id(message), 0)
        text = text_of(message)
        if message["role"] not in _CLIPPED_ROLES or tokens <= limit:
            return message
        clipped += 1
        half = len(text) * limit // tokens // 2
        cut = len(text) - 2 * half
        return {**message, "content": f"{text[:half]}\n[... {cut} characters left out ...]\n{text[-half:]}"}

    return map_messages(session, change), clipped
