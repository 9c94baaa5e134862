"""Conversations, replies and whole agent sessions for tests, in as few words as a test should need."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from agentinfer.clock import ManualClock
from agentinfer.hints import AgentHints, parse_hints
from agentinfer.messages import Conversation, Reply
from agentinfer.sessions import SessionTable, Turn, TurnUsage

Body = dict[str, Any]

SYSTEM = {"role": "system", "content": "You are a careful agent."}


def user(text: str) -> Body:
    return {"role": "user", "content": text}


def assistant(text: str, *calls: Body) -> Body:
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {})}


def call(call_id: str, name: str = "bash", **arguments: Any) -> Body:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def tool(call_id: str, text: str) -> Body:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def chat(*messages: Body, **fields: Any) -> Conversation:
    conversation = Conversation.from_body("/v1/chat/completions", {"messages": list(messages), **fields})
    assert conversation is not None
    return conversation


def text_prompt(text: str) -> Conversation:
    conversation = Conversation.from_body("/v1/completions", {"prompt": text})
    assert conversation is not None
    return conversation


def replied(message: Body) -> Reply:
    return Reply.from_json("chat", {"id": "r", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def hints(**own: Any) -> AgentHints:
    return parse_hints({"agentinfer": own}, {})


class Bench:
    """A session table with a clock and ids of its own, and the shortest way to serve a turn."""

    def __init__(self, max_sessions: int = 100, expiry_s: float = 3600.0, max_bytes: int = 1 << 30) -> None:
        self.clock = ManualClock()
        numbers = itertools.count(1)
        self.table = SessionTable(max_sessions, expiry_s, self.clock, lambda: f"s{next(numbers)}", max_bytes)

    def begin(self, conversation: Conversation, hints: AgentHints | None = None) -> Turn:
        return self.table.begin_turn(hints or AgentHints(), conversation)

    def finish(self, turn: Turn, reply: Reply | Body, outcome: Any = "ok") -> None:
        answer = replied(reply) if isinstance(reply, Mapping) else reply
        self.table.finish_turn(turn, answer, TurnUsage(100, 50, 10), outcome)
        self.table.check_integrity()

    def serve(self, conversation: Conversation, reply: Reply | Body, hints: AgentHints | None = None) -> Turn:
        turn = self.begin(conversation, hints)
        self.finish(turn, reply)
        return turn


def generated_sessions(num_sessions: int, num_turns: int, seed: int) -> list[list[Body]]:
    """Agent sessions as message lists. Two in three share their task with another session, as repeated runs do."""
    rng = random.Random(seed)
    sessions = []
    for number in range(num_sessions):
        task = number // 3 * 3 + (0 if number % 3 < 2 else 2)
        messages = [SYSTEM, user(f"Task {task}: make the failing test of module {task} pass, then say what it was.")]
        for turn in range(num_turns):
            word = rng.choice(("ls", "cat", "grep", "pytest"))
            call_id = f"call_{rng.getrandbits(64):016x}"
            messages.append(assistant(rng.choice(("", "Let me look.")), call(call_id, command=f"{word} {turn}")))
            messages.append(tool(call_id, rng.choice(("ok", "not found", f"{word} gave {turn}"))))
        messages.append(assistant("Done."))
        sessions.append(messages)
    return sessions


def turn_positions(messages: list[Body]) -> Iterator[int]:
    """The positions of the replies in a session's messages."""
    return (position for position, message in enumerate(messages) if message["role"] == "assistant")
