"""A made-up session, for where no recorded ones are at hand: an agent that reads files and uses what it read."""

from __future__ import annotations

import json
import random

from agentinfer.replay.session import Message, Session, SessionBuilder

_NOUNS = ("parser", "schema", "cache", "index", "writer", "router", "session", "worker", "field", "query")
_VERBS = ("load", "merge", "split", "check", "flush", "build", "resolve", "encode")


def sample_session(name: str, num_steps: int, seed: int, lines: int = 60) -> Session:
    """`num_steps` files are read; every fourth reply names what an earlier file said."""
    rng = random.Random(seed)
    builder = SessionBuilder(name)
    builder.add({"role": "system", "content": "You are an agent with a shell."})
    builder.add({"role": "user", "content": "Find out why the totals are wrong, and mend it."})
    said: list[str] = []
    for step in range(num_steps):
        path = f"src/{rng.choice(_NOUNS)}_{step}/{rng.choice(_VERBS)}.py"
        thought = f"I look into {path}."
        if step % 4 == 3:
            thought += f" It calls {rng.choice(said)}, which I saw before."
        builder.add(_call(step, thought, f"cat {path}"))
        names = [f"{rng.choice(_VERBS)}_{rng.choice(_NOUNS)}_{rng.randrange(1000)}" for _ in range(lines)]
        said += names[:3]
        text = "\n".join(
            f"{number:4} def {each}(self, limit={rng.randrange(9999)}):" for number, each in enumerate(names)
        )
        builder.add({"role": "tool", "tool_call_id": f"call_{step}", "content": text})
    builder.add({"role": "assistant", "content": "It is mended."})
    return Session(id=name, task=name, run="0", source="made up", turns=builder.turns())


def _call(step: int, thought: str, command: str) -> Message:
    function = {"name": "bash", "arguments": json.dumps({"command": command})}
    return {
        "role": "assistant",
        "content": thought,
        "tool_calls": [{"id": f"call_{step}", "type": "function", "function": function}],
    }
