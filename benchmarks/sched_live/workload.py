"""What is played: recorded sessions cut to what a CPU can carry, and short questions about documents.

Recorded replies and outputs are shortened, never left out, so a session keeps its turns, its tools and its gaps; the
tools' calls become plain text, as short replies have no room for them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from agentinfer.errors import TraceError
from agentinfer.replay.render import map_messages, reply_text
from agentinfer.replay.session import Message, Session, Turn, text_of
from agentinfer.replay.traces import Trace

# What ChatML templates put around a message, and before a reply.
_MESSAGE_TOKENS = 5
_GENERATION_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Cut:
    """`turns` a session, tokens kept of the first user message, of each tool output and of each reply, and the longest
    tool gap in seconds."""

    turns: int = 6
    first_tokens: int = 600
    output_tokens: int = 40
    reply_tokens: int = 8
    gap_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Workload:
    """`sessions` for the closed loop, `spare` ones that are not played, `context_tokens` the mean over all turns of
    prompt and reply, `longest_tokens` the most of them in one turn."""

    sessions: list[Session]
    spare: list[Session]
    context_tokens: float
    longest_tokens: int

    def kv_tokens(self, live_sessions: int, oversubscription: float) -> int:
        """The cache in which the mean contexts of `live_sessions` sessions oversubscribe so much of it.

        Raises SystemExit where the longest turn would not fit.
        """
        size = round(live_sessions * self.context_tokens / oversubscription)
        if size < self.longest_tokens + 64:
            raise SystemExit(
                f"{oversubscription:g}x of {live_sessions} sessions leaves {size} tokens of cache, but one turn takes "
                f"{self.longest_tokens}: play more sessions at once"
            )
        return size


def make(trace: Trace, tokenizer: Tokenizer, cut: Cut, num_sessions: int, seed: int) -> Workload:
    """One run of each of `num_sessions` tasks, so that no session finds another's context in the cache.

    Raises TraceError where the trace has too few tasks with so many turns.
    """
    by_task: dict[str, list[Session]] = {}
    for session in trace.sessions:
        if len(session.turns) >= cut.turns:
            by_task.setdefault(session.task, []).append(session)
    if len(by_task) < num_sessions:
        raise TraceError(
            f"{trace.name}: {len(by_task)} tasks have sessions of {cut.turns} turns, {num_sessions} are asked for"
        )
    rng = random.Random(seed)
    tasks = sorted(by_task)
    rng.shuffle(tasks)
    played = [shorten(rng.choice(by_task[task]), tokenizer, cut) for task in tasks[:num_sessions]]
    ids = {session.id for session in played}
    spare = [session for task in tasks for session in by_task[task] if session.id not in ids]
    contexts = [prompt + reply for session in played for prompt, reply in turn_tokens(session, tokenizer)]
    return Workload(played, spare, sum(contexts) / len(contexts), max(contexts))


def shorten(session: Session, tokenizer: Tokenizer, cut: Cut) -> Session:
    """The session's first turns with short texts and no gap above the limit."""
    turns = tuple(
        replace(turn, gap_s=None if turn.gap_s is None else min(turn.gap_s, cut.gap_s))
        for turn in session.turns[: cut.turns]
    )
    first_user = next((id(m) for m in turns[0].prompt if m["role"] == "user"), None)

    def change(message: Message) -> Message:
        if message["role"] == "assistant":
            return {"role": "assistant", "content": _head(reply_text(message), cut.reply_tokens, tokenizer)}
        limit = cut.first_tokens if id(message) == first_user else cut.output_tokens
        return {**message, "content": _ends(text_of(message), limit, tokenizer)}

    return map_messages(replace(session, turns=turns), change)


def turn_tokens(session: Session, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """(prompt, reply) tokens of each turn."""
    sizes: dict[int, int] = {}

    def size(message: Message) -> int:
        if id(message) not in sizes:
            sizes[id(message)] = _MESSAGE_TOKENS + len(tokenizer.encode(text_of(message)).ids)
        return sizes[id(message)]

    return [(sum(map(size, turn.prompt)) + _GENERATION_TOKENS, size(turn.reply)) for turn in session.turns]


def questions(sources: Sequence[Session], tokenizer: Tokenizer, reply_tokens: int, seed: int) -> Iterator[Session]:
    """Endless questions of one turn about documents of 300 to 600 tokens, pieces of what tools printed in `sources`."""
    rng = random.Random(f"questions {seed}")
    printed = [text_of(m) for s in sources for m in s.messages if m["role"] == "tool" and len(text_of(m)) > 4000]
    replies = [reply_text(turn.reply) for s in sources for turn in s.turns]
    number = 0
    while True:
        text = rng.choice(printed)
        # Four characters a token is at least what these texts have, so the piece is long enough to be cut.
        size = rng.randint(300, 600)
        start = rng.randrange(max(1, len(text) - 4 * size))
        document = _head(text[start : start + 8 * size], size, tokenizer)
        prompt: tuple[Message, ...] = (
            {"role": "user", "content": f"Document {number}:\n{document}\n\nWhat does this document say?"},
        )
        reply = {"role": "assistant", "content": _head(rng.choice(replies), reply_tokens, tokenizer)}
        name = f"question-{number}"
        yield Session(name, name, "", "questions", (Turn(0, prompt, reply),))
        number += 1


def _head(text: str, limit: int, tokenizer: Tokenizer) -> str:
    offsets = tokenizer.encode(text).offsets
    return text if len(offsets) <= limit else text[: offsets[limit - 1][1]].rstrip()


def _ends(text: str, limit: int, tokenizer: Tokenizer) -> str:
    """Head and tail, as agents' tools cut long output themselves."""
    offsets = tokenizer.encode(text).offsets
    if len(offsets) <= limit:
        return text
    half = limit // 2
    return f"{text[: offsets[half - 1][1]]}\n[...]\n{text[offsets[-half][0] :]}"
