"""What happened in a program: who spoke in each step, why, and what its check said."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.lang.interpreter import ProgramState

from agentinfer.collab_lang.controller import Model, Verdict
from agentinfer.collab_lang.programs.branch import branch_of


@dataclass(frozen=True, slots=True)
class TrailStep:
    """One step. `reason`: why `model` spoke. `verdict` and `p_true`: of its check, MISSING and None where none came.

    `why`: the check's own words, where its form has any. `next_reason`: what the step led to; None for a last step that
    no other followed.
    """

    step: int
    model: Model
    reason: str
    verdict: Verdict
    p_true: float | None = None
    why: str = ""
    next_reason: str | None = None


def collab_trail(state: ProgramState, wait_s: float = 0.0) -> list[TrailStep]:
    """The steps of a program, or of a fork since it was forked; the last 256 of them.

    `wait_s`: how long to wait for the check of the last step, which nothing else waits for.
    """
    s = state.stream_executor
    s.sync()
    branch = branch_of(s)
    if branch.check is not None and wait_s > 0:
        branch.check.done.wait(wait_s)
    with branch.lock:
        closed = {each.step: each for each in branch.trajectory.transitions}
        # The last step is closed by the next one; here a copy is, so that the program may go on.
        copy = branch.trajectory.fork()
        copy.finish()
        last = {each.step: each for each in copy.transitions}
        rows = []
        for choice in branch.choices:
            step = closed.get(choice.step) or last.get(choice.step)
            rows.append(
                TrailStep(
                    choice.step,
                    choice.model,
                    str(choice.reason),
                    step.verdict if step else Verdict.MISSING,
                    step.p_true if step else None,
                    step.why if step else "",
                    str(closed[choice.step].reason) if choice.step in closed else None,
                )
            )
        return rows
