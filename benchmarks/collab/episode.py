"""A task under way, from what was said so far: what the agent may say next, and the chat that an engine is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.collab.tasks import Fact, Task

Said = tuple[Fact, ...]
_INSTRUCTION: Final = "Answer the question step by step. In each step, repeat the one fact that leads to the answer."
# Steps beyond the path's after which a task is given up.
_SPARE_STEPS: Final = 3


def choices(task: Task, said: Said) -> tuple[Fact, ...]:
    """The facts told so far and not yet said, in the order in which they were told."""
    names = (task.path[0].subject, *(fact.value for fact in said))
    return tuple(fact for name in names for fact in task.told.get(name, ()) if fact not in said)


def is_over(task: Task, said: Said) -> bool:
    return bool(said) and (said[-1].is_answer or len(said) >= task.hops + _SPARE_STEPS or not choices(task, said))


def is_right(task: Task, said: Said) -> bool:
    """Whether the answer was given, by way of whichever facts."""
    return bool(said) and said[-1] == task.path[-1]


def is_progress(task: Task, said: Said, fact: Fact) -> bool:
    """Whether saying `fact` brings the task forward: it is the first of the path that is still to be said."""
    return next((each for each in task.path if each not in said), None) == fact


def messages(task: Task, said: Said, examples: Sequence[Task]) -> list[dict[str, Any]]:
    """The chat whose answer is the next step. `examples` are played before it, each as a right agent would."""
    found = [_message("system", _INSTRUCTION)]
    for example in examples:
        found += _played(example, example.path)
    return found + _played(task, said, is_open=True)


def _played(task: Task, said: Said, is_open: bool = False) -> list[dict[str, Any]]:
    question = f"Question: {task.question}"
    found = []
    result = f"{question}\n{_told(task, task.path[0].subject)}"
    for fact in said:
        found += [_message("user", result), _message("assistant", fact.text)]
        # Models of this size forget what was asked: without this they do no better than chance.
        result = f"{_told(task, fact.value)}\n{question}"
    return [*found, _message("user", result)] if is_open else found


def _told(task: Task, name: str) -> str:
    return " ".join(fact.text for fact in task.told.get(name, ())) or f"Nothing more is known about {name}."


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
