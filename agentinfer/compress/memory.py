"""An agent's memory as steps: what it thought and did, which stays word for word, and what it observed.

The paper's split of the memory (section 3.2) is reasoning (Think and Act) against environment (tool results). A step is
an assistant message and the tool results that follow it; only tool results of closed steps may ever be taken away, so a
call and its result are never separated and no call is left without one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from agentinfer.messages import Message

_TOOL_ROLES = frozenset(("tool", "function"))
_ID = re.compile(r"o(\d{1,6})")
_MAX_LOOP_STEPS: Final = 8


@dataclass(frozen=True, slots=True)
class Observation:
    """One tool result. `index` is its message's place in the client's history, and `id` names it to agent and reader.

    `tool` is the name of the tool that was called, empty where the call cannot be told. `arguments_text` is what it was
    called with.
    """

    index: int
    tool: str
    arguments_text: str = field(repr=False)
    text: str = field(repr=False)

    @property
    def id(self) -> str:
        return observation_id(self.index)


@dataclass(frozen=True, slots=True)
class Step:
    """Messages [start, end): an assistant message that calls tools, and the results.

    `is_closed`: every call has its result. `ends_loop`: a round of the agent's work ends with it; see `_loop_ends`.
    """

    start: int
    end: int
    observations: tuple[Observation, ...]
    is_closed: bool
    ends_loop: bool = True


def observation_id(index: int) -> str:
    """``o12`` for the tool result that is message 12 of the history."""
    return f"o{index}"


def parse_observation_id(text: str) -> int:
    """The place of the message that an id names. Raises ValueError naming what an id looks like."""
    match = _ID.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"observation id: got {text!r}, expected the letter o and a number, as in o12")
    return int(match[1])


def split(messages: Sequence[Message]) -> tuple[Step, ...]:
    """The steps of a history, in order. What is outside of them (system, task, a person's words) is never touched.

    Results may come in any order within their step, as the OpenAI API allows. A result that carries more than text
    keeps its message but is no observation.
    """
    steps: list[Step] = []
    start: int | None = None
    for index, message in enumerate([*messages, Message("user", "")]):
        if message.role in _TOOL_ROLES:
            continue
        if start is not None:
            steps.append(_step(messages, start, index))
        start = index if message.role == "assistant" and message.tool_calls else None
    ends = _loop_ends([messages[step.start].tool_calls[0].name for step in steps])
    return tuple(
        Step(step.start, step.end, step.observations, step.is_closed, is_end)
        for step, is_end in zip(steps, ends, strict=True)
    )


def _step(messages: Sequence[Message], start: int, end: int) -> Step:
    calls = messages[start].tool_calls
    by_id = {call.id: call for call in calls if call.id}
    results = range(start + 1, end)
    answered = {messages[index].tool_call_id for index in results}
    # Without ids, results answer the calls in their order.
    is_closed = len(results) >= len(calls) and (len(by_id) < len(calls) or by_id.keys() <= answered)
    observations = []
    for position, index in enumerate(results):
        message = messages[index]
        call = by_id.get(message.tool_call_id or "") or (calls[position] if position < len(calls) else None)
        if not message.attachments and message.text:
            name, arguments = (call.name, call.arguments_text) if call is not None else ("", "")
            observations.append(Observation(index, name, arguments, message.text))
    return Step(start, end, tuple(observations), is_closed)


def _loop_ends(tools: Sequence[str]) -> list[bool]:
    """Which steps end a loop: the next one goes back to a tool of this loop, or the loop has only one tool.

    A deep-research agent goes round search, crawl, question; a coding agent with one shell closes a loop at each step.
    Without such an order a loop ends after `_MAX_LOOP_STEPS`. The last step ends one as far as can be told.
    """
    ends = []
    loop: list[str] = []
    for position, tool in enumerate(tools):
        following = tools[position + 1] if position + 1 < len(tools) else None
        loop.append(tool)
        is_round = following in loop and (following != tool or len(set(loop)) == 1)
        ends.append(following is None or is_round or len(loop) >= _MAX_LOOP_STEPS)
        if ends[-1]:
            loop.clear()
    return ends
