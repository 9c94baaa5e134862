"""A task played on its recorded tree under a policy, and what that costs in counted tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agentinfer.collab_lang.controller import Model
from benchmarks.collab.episode import is_right
from benchmarks.collab.tasks import Task
from benchmarks.collab.tree import Key, Node, Step, Tree, said_at


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that was taken."""

    model: Model
    step: Step


# Who speaks, after the steps so far, at a node. A policy makes one for each task.
Speaker = Callable[[Sequence[Taken], Node], Model]
Policy = Callable[[Task], Speaker]


@dataclass(slots=True)
class Played:
    """What a task came to. Tokens are by model.

    `prefilled`: computed on the critical path, if nothing is prefilled before a turn asks for it. `at_switches`: of it,
    at steps whose speaker is another than the step's before; `cold_at_switches`: of that, what could have been
    computed while the tool ran, which is all but the tool's own result.
    """

    is_right: bool = False
    p_answer: float = 0.0
    speakers: list[Model] = field(default_factory=list)
    switches: int = 0
    prefilled: dict[Model, int] = field(default_factory=lambda: dict.fromkeys(Model, 0))
    decoded: dict[Model, int] = field(default_factory=lambda: dict.fromkeys(Model, 0))
    checked: dict[Model, int] = field(default_factory=lambda: dict.fromkeys(Model, 0))
    at_switches: int = 0
    cold_at_switches: dict[Model, int] = field(default_factory=lambda: dict.fromkeys(Model, 0))

    @property
    def large_steps(self) -> int:
        return self.speakers.count(Model.LARGE)


def play(task: Task, tree: Tree, policy: Policy, shared_tokens: Mapping[Model, int]) -> Played:
    """`shared_tokens`: of each model's prompt, what is in its cache before the task begins."""
    speaker = policy(task)
    found = Played()
    taken: list[Taken] = []
    seen = dict(shared_tokens)
    key: Key = ()
    before: Node | None = None
    while True:
        node = tree.nodes[key]
        model = speaker(taken, node)
        step = node[model]
        unseen = max(0, step.prompt_tokens - seen[model])
        found.prefilled[model] += unseen
        if taken and before is not None and taken[-1].model is not model:
            found.switches += 1
            found.at_switches += unseen
            result = step.prompt_tokens - before[model].prompt_tokens - taken[-1].step.reply_tokens
            found.cold_at_switches[model] += max(0, unseen - result)
        found.decoded[model] += step.reply_tokens
        found.checked[model] += step.check_tokens
        found.speakers.append(model)
        found.p_answer = step.p_answer
        seen[model] = step.prompt_tokens + step.reply_tokens
        taken.append(Taken(model, step))
        key = (*key, step.choice)
        if key not in tree.nodes:  # the record ends where the task does
            found.is_right = is_right(task, said_at(task, key))
            return found
        before = node
