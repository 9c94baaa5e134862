"""Recorded sessions with text, as numbers of tokens: what each prompt keeps of the context before it, what is new."""

from __future__ import annotations

import hashlib
from itertools import accumulate

from agentinfer.commands.simulate.counting import TokenCount
from agentinfer.radix_ext.simulator import SharedSegment, SimSession, SimTurn
from agentinfer.replay.render import reply_text
from agentinfer.replay.session import Message, Session

_INSTRUCTIONS = ("system", "developer")


def sim_session(session: Session, counter: TokenCount, default_gap_s: float, max_gap_s: float | None) -> SimSession:
    """The session as the simulator takes it. Different runs of one task share instructions and first user message."""
    first = session.turns[0].prompt
    shared = _shared_start(session, counter)
    tools = counter.schemas(session.tool_schemas)
    known: list[Message] = []  # the context so far, by message, and at which token each ends
    ends: list[int] = []
    turns: list[SimTurn] = []
    for turn in session.turns:
        prompt = list(turn.prompt)
        same = _common_length(known, prompt)
        new = sum(counter.messages(prompt[same:]))
        if not turns:
            kept = sum(segment.num_tokens for segment in shared)
            new = max(1, new + tools - kept)
            ends = [tools + end for end in accumulate(counter.messages(first))]
            ends[-1] = kept + new
        else:
            kept = ends[same - 1] if same else 0
            if not new:  # the prompt goes back to an earlier message: its last token is computed again
                kept, new = kept - 1, 1
            ends[same:] = [kept + end for end in accumulate(counter.messages(prompt[same:]))]
        said = counter.messages([turn.reply])[0]
        known = [*prompt, turn.reply]
        ends.append(kept + new + said)
        gap_s = default_gap_s if turn.gap_s is None else turn.gap_s
        if turn is session.turns[-1]:
            gap_s = 0.0
        gap_s = gap_s if max_gap_s is None else min(gap_s, max_gap_s)
        turns.append(SimTurn(kept, new, said, gap_s, turn.tools[0] if turn.tools else None))
    return SimSession(session.id, tuple(turns), shared)


def _shared_start(session: Session, counter: TokenCount) -> tuple[SharedSegment, ...]:
    """Instructions with tool schemas, then what the user asks first, as far as that is how the session begins."""
    prompt = session.turns[0].prompt
    num_instructions = _count_leading(prompt, _INSTRUCTIONS)
    num_asked = _count_leading(prompt[num_instructions:], ("user",))
    segments = []
    start, tools = 0, counter.schemas(session.tool_schemas)
    for count in (num_instructions, num_asked):
        part = prompt[start : start + count]
        start += count
        num_tokens = sum(counter.messages(part)) + tools
        if num_tokens:
            # Content decides, so that sessions of other tasks with the same instructions share those.
            texts = "\0".join(reply_text(message) for message in part)
            key = hashlib.blake2b(f"{tools}\0{texts}".encode(), digest_size=12).hexdigest()
            segments.append(SharedSegment(key, num_tokens))
        tools = 0
    return tuple(segments)


def _count_leading(messages: tuple[Message, ...], roles: tuple[str, ...]) -> int:
    return next((i for i, message in enumerate(messages) if message["role"] not in roles), len(messages))


def _common_length(known: list[Message], prompt: list[Message]) -> int:
    pairs = zip(known, prompt, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a is not b and a != b), min(len(known), len(prompt)))
