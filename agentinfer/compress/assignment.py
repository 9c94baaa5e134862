"""From a plan to what a distiller is given: the task, what the agent thought in between, and the budget."""

from __future__ import annotations

from collections.abc import Sequence

from agentinfer.compress.distiller import Assignment
from agentinfer.compress.plan import Plan
from agentinfer.messages import Message

_ASKING_ROLES = frozenset(("user",))


def assignment_of(plan: Plan, messages: Sequence[Message], tokens_per_char: float) -> Assignment:
    """`messages` are those that the plan was made for.

    The task is all that a person says before the agent's first word. The reasoning is the agent's text from the first
    result taken to the end of what the plan covers.
    """
    task = []
    for message in messages:
        if message.role == "assistant":
            break
        if message.role in _ASKING_ROLES:
            task.append(message.text)
    begin = plan.taken[0].index if plan.taken else plan.covers
    said = [
        text
        for message in messages[begin : plan.covers]
        if message.role == "assistant"
        for text in (message.reasoning_text, message.text)
        if text
    ]
    return Assignment(
        task="\n".join(task),
        reasoning="\n".join(said),
        observations=plan.taken,
        budget_tokens=plan.note_tokens,
        tokens_per_char=tokens_per_char,
    )
