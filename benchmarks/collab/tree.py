"""What both models would say wherever one of them may lead a task: all that policies need, recorded once.

Replies are greedy and tools always tell the same, so the steps taken so far decide what each model says next. All
policies, thresholds and random seeds are then played on the same few calls, and differ in nothing but who speaks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agentinfer.collab_lang.controller import Model
from benchmarks.collab.episode import Said, choices, is_over
from benchmarks.collab.tasks import Task


@dataclass(frozen=True, slots=True)
class Step:
    """What a model says. `choice`: which of the node's choices; `probability`: how likely, against all of them.

    `p_answer`: that of the right answer against all answers that could be given now; 0 where it was not told yet.
    `p_true`: what its progress check says of the step; None where that could not be read. `prompt_tokens` and
    `reply_tokens` are those of the step, `check_tokens` what the check adds behind them.
    """

    choice: int
    probability: float
    p_answer: float
    p_true: float | None
    is_progress: bool
    prompt_tokens: int
    reply_tokens: int
    check_tokens: int


# By the choices taken from the task's beginning.
Key = tuple[int, ...]
Node = Mapping[Model, Step]


@dataclass(frozen=True, slots=True)
class Tree:
    """One task's nodes. The first is that of no step taken."""

    task_id: str
    nodes: Mapping[Key, Node]

    def as_json(self) -> dict[str, Any]:
        rows = [
            {"said": list(key), **{model.value: list(asdict(step).values()) for model, step in node.items()}}
            for key, node in self.nodes.items()
        ]
        return {"task": self.task_id, "nodes": rows}


def tree_from_json(document: Mapping[str, Any]) -> Tree:
    return Tree(
        document["task"],
        {tuple(row["said"]): {model: Step(*row[model.value]) for model in Model} for row in document["nodes"]},
    )


def said_at(task: Task, key: Sequence[int]) -> Said:
    said: Said = ()
    for choice in key:
        said = (*said, choices(task, said)[choice])
    return said


async def record(task: Task, steps_at: Callable[[Task, Said], Awaitable[Node]]) -> Tree:
    """Every node that one of the models leads to from another. `steps_at` asks both, and is awaited."""
    nodes: dict[Key, Node] = {}
    open_keys: list[Key] = [()]
    while open_keys:
        key = open_keys.pop()
        nodes[key] = await steps_at(task, said_at(task, key))
        for choice in sorted({step.choice for step in nodes[key].values()}):
            following = (*key, choice)
            if not is_over(task, said_at(task, following)):
                open_keys.append(following)
    return Tree(task.id, nodes)
