"""Who speaks in which step: ours, what it is compared with, and what nobody could know."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from agentinfer.collab_lang.controller import Model, Verdict, after_step, opening
from agentinfer.collab_lang.progress import Judgement, verdict
from agentinfer.collab_lang.settings import CollabSettings
from benchmarks.collab.play import Policy, Speaker, Taken
from benchmarks.collab.tasks import Task
from benchmarks.collab.tree import Node

Judge = Callable[[Taken], Verdict]


def only(model: Model) -> Policy:
    return lambda task: lambda taken, node: model


def large_plans(steps: int) -> Policy:
    """The large model takes the first steps, the small one all others."""
    return lambda task: lambda taken, node: Model.LARGE if len(taken) < steps else Model.SMALL


def at_random(large_share: float, seed: int) -> Policy:
    """Each step by the large model with this probability; the same draws whatever the share is."""

    def of_task(task: Task) -> Speaker:
        rng = random.Random(f"{seed} {task.id}")
        draws: list[float] = []

        def speaker(taken: Sequence[Taken], node: Node) -> Model:
            while len(draws) <= len(taken):
                draws.append(rng.random())
            return Model.LARGE if draws[len(taken)] < large_share else Model.SMALL

        return speaker

    return of_task


def routed(threshold: float) -> Policy:
    """One decision a task, as RouteLLM's: the large model, if the small one is less sure than this of its first step.

    What it would say there is asked first, but not counted, since RouteLLM's own router is no model of this size.
    """

    def of_task(task: Task) -> Speaker:
        chosen: list[Model] = []

        def speaker(taken: Sequence[Taken], node: Node) -> Model:
            if not chosen:
                chosen.append(Model.LARGE if node[Model.SMALL].probability < threshold else Model.SMALL)
            return chosen[0]

        return speaker

    return of_task


def collab(settings: CollabSettings, judge: Judge) -> Policy:
    """Our controller, with the verdict of each step there before the next begins."""

    def speaker(taken: Sequence[Taken], node: Node) -> Model:
        state = opening(settings)
        for each in taken:
            state = after_step(state, judge(each), settings)
        return state.model

    return lambda task: speaker


def by_check(threshold: float) -> Judge:
    """The model's own progress check against a threshold."""

    def judge(taken: Taken) -> Verdict:
        p_true = taken.step.p_true
        return verdict(None if p_true is None else Judgement(p_true >= 0.5, p_true), threshold)

    return judge


def by_confidence(threshold: float) -> Judge:
    """No question: how likely the reply was against the others."""
    return lambda taken: verdict(Judgement(True, taken.step.probability), threshold)


def by_truth(taken: Taken) -> Verdict:
    """A check that always knows whether the step was right."""
    return Verdict.PROGRESS if taken.step.is_progress else Verdict.NO_PROGRESS


def foreseeing(task: Task) -> Speaker:
    """The large model exactly where it would take a right step and the small one would not."""
    return lambda taken, node: (
        Model.LARGE if node[Model.LARGE].is_progress and not node[Model.SMALL].is_progress else Model.SMALL
    )
