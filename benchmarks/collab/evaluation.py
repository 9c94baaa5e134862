"""All policies on the recorded trees: accuracy, shares, tokens and estimated seconds, each with its interval.

What is fitted (a threshold) is fitted on one half of the tasks and used on the other, and the other way round, so every
task counts once and never with a threshold that has seen it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.settings import CollabSettings
from agentinfer.collab_lang.threshold import fit
from benchmarks.collab import policies
from benchmarks.collab.play import Played, Policy, play
from benchmarks.collab.policies import Judge
from benchmarks.collab.tasks import Task
from benchmarks.collab.tree import Step, Tree

# The tasks are two to four steps long: one step opens, and bursts are shorter than the follow-up's.
GROWING: Final = CollabSettings(warm_up_steps=1, burst_first=1, burst_growth=1, burst_max=3, max_steps=None)
CONSTANT: Final = CollabSettings(warm_up_steps=1, burst_first=1, burst_growth=0, burst_max=1, max_steps=None)
TARGET_RATES: Final = (0.1, 0.25, 0.5)
RANDOM_SEEDS: Final = 100
_RESAMPLES: Final = 4000
_HALVES: Final = 2


@dataclass(frozen=True, slots=True)
class Recorded:
    """The tasks with their trees. `seconds`: of a token, to prefill and to decode it."""

    tasks: Sequence[Task]
    trees: Sequence[Tree]
    shared_tokens: Mapping[Model, int]
    seconds: Mapping[Model, tuple[float, float]]
    random_seeds: int = RANDOM_SEEDS

    def play(self, policy_of_half: Sequence[Policy]) -> list[Played]:
        """Task by task; tasks of a half are played with its policy."""
        return [
            play(task, tree, policy_of_half[number % len(policy_of_half)], self.shared_tokens)
            for number, (task, tree) in enumerate(zip(self.tasks, self.trees, strict=True))
        ]

    def calibration_steps(self, half: int) -> list[Step]:
        """Steps of the small model on the tasks of the other half: after an opening, at every node it may meet."""
        trees = [tree for number, tree in enumerate(self.trees) if number % _HALVES != half]
        return [node[Model.SMALL] for tree in trees for key, node in tree.nodes.items() if key]


def evaluate(recorded: Recorded) -> dict[str, Any]:
    rows = [
        _row("large only", recorded, recorded.play([policies.only(Model.LARGE)])),
        _row("small only", recorded, recorded.play([policies.only(Model.SMALL)])),
        *(_row(f"large plans {count}", recorded, recorded.play([policies.large_plans(count)])) for count in (1, 2)),
    ]
    rows += [_row(f"routed at {rate}", recorded, recorded.play(_routed(recorded, rate))) for rate in TARGET_RATES]
    for rate in TARGET_RATES:
        rows += [
            _compared(f"collab at {rate}", recorded, _fitted(recorded, rate, GROWING, _p_true, policies.by_check)),
            _compared(
                f"collab at {rate}, constant budget",
                recorded,
                _fitted(recorded, rate, CONSTANT, _p_true, policies.by_check),
            ),
            _compared(
                f"collab at {rate}, by the reply's probability",
                recorded,
                _fitted(recorded, rate, GROWING, _probability, policies.by_confidence),
            ),
        ]
    unfitted = policies.collab(GROWING, policies.by_check(0.5))
    rows.append(_compared("collab, threshold 0.5", recorded, [unfitted]))
    rows.append(_compared("collab, a check that knows", recorded, [policies.collab(GROWING, policies.by_truth)]))
    rows.append(_compared("who would be right speaks", recorded, [policies.foreseeing]))
    return {"policies": rows, "models_steps": _models(recorded)}


def _fitted(
    recorded: Recorded,
    rate: float,
    settings: CollabSettings,
    figure: Callable[[Step], float | None],
    judge: Callable[[float], Judge],
) -> list[Policy]:
    return [policies.collab(settings, judge(_threshold(recorded, half, rate, figure))) for half in range(_HALVES)]


def _routed(recorded: Recorded, rate: float) -> list[Policy]:
    """The threshold is that share's quantile among first steps."""
    found = []
    for half in range(_HALVES):
        firsts = [tree.nodes[()][Model.SMALL] for number, tree in enumerate(recorded.trees) if number % _HALVES != half]
        found.append(policies.routed(fit([each.probability for each in firsts], rate, "small", "first step").value))
    return found


def _threshold(recorded: Recorded, half: int, rate: float, figure: Callable[[Step], float | None]) -> float:
    known = [value for step in recorded.calibration_steps(half) if (value := figure(step)) is not None]
    return fit(known, rate, "small", "verdict").value


def _p_true(step: Step) -> float | None:
    return step.p_true


def _probability(step: Step) -> float | None:
    return step.probability


def _compared(name: str, recorded: Recorded, policy_of_half: Sequence[Policy]) -> dict[str, Any]:
    """The row, and what the same share of large steps brings where they are drawn by lot."""
    played = recorded.play(policy_of_half)
    row = _row(name, recorded, played)
    share = _random_share(recorded, row["large_steps_share"])
    drawn = [recorded.play([policies.at_random(share, seed)]) for seed in range(recorded.random_seeds)]
    by_task = np.array([[each.is_right for each in run] for run in drawn], dtype=float)
    differences = np.array([each.is_right for each in played], dtype=float) - by_task.mean(axis=0)
    by_seed = by_task.mean(axis=1)
    row["random"] = {
        "large_steps_share": _large_share([each for run in drawn for each in run]),
        "accuracy": float(by_seed.mean()),
        "accuracy_of_seeds": {"low": float(np.quantile(by_seed, 0.025)), "high": float(np.quantile(by_seed, 0.975))},
        "switches": statistics.fmean(each.switches for run in drawn for each in run),
        "difference": _interval(differences),
    }
    return row


def _random_share(recorded: Recorded, wanted: float) -> float:
    """The probability of the large model at which its share of steps is as wished, by halving."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        drawn = [each for seed in range(8) for each in recorded.play([policies.at_random(middle, seed)])]
        low, high = (middle, high) if _large_share(drawn) < wanted else (low, middle)
    return (low + high) / 2


def _row(name: str, recorded: Recorded, played: Sequence[Played]) -> dict[str, Any]:
    steps = sum(len(each.speakers) for each in played)
    decoded = sum(sum(each.decoded.values()) for each in played)
    switches = sum(each.switches for each in played)
    cold, warm = (_seconds(recorded, played, is_warm) for is_warm in (False, True))
    return {
        "policy": name,
        "tasks": len(played),
        "accuracy": _interval(np.array([each.is_right for each in played], dtype=float)),
        "p_answer": _interval(np.array([each.p_answer for each in played])),
        "large_steps_share": _large_share(played),
        "large_tokens_share": sum(each.decoded[Model.LARGE] for each in played) / decoded,
        "steps": steps / len(played),
        "switches": switches / len(played),
        "prefilled_at_switches": sum(each.at_switches for each in played) / len(played),
        "of_it_before_the_result": sum(sum(each.cold_at_switches.values()) for each in played) / len(played),
        "seconds": cold,
        "seconds_warm": warm,
    }


def _seconds(recorded: Recorded, played: Sequence[Played], is_warm: bool) -> float:
    """A task's model time: prefill and decoding on the critical path; checks run while tools do."""
    total = 0.0
    for each in played:
        for model, (prefill_s, decode_s) in recorded.seconds.items():
            prefilled = each.prefilled[model] - (each.cold_at_switches[model] if is_warm else 0)
            total += prefilled * prefill_s + each.decoded[model] * decode_s
    return total / len(played)


def _models(recorded: Recorded) -> list[dict[str, Any]]:
    """Each model's steps at every node, and what its figures say about whether a step is right."""
    rows = []
    for model in Model:
        steps = [node[model] for tree in recorded.trees for node in tree.nodes.values()]
        right = [step.is_progress for step in steps]
        judged = [step for step in steps if step.p_true is not None]
        rows.append(
            {
                "model": model.value,
                "steps": len(steps),
                "right_share": statistics.fmean(right),
                "unread_checks": len(steps) - len(judged),
                "p_true_median": statistics.median(step.p_true or 0.0 for step in judged),
                "said_true_share": statistics.fmean((step.p_true or 0.0) >= 0.5 for step in judged),
                "check_tells_right_from_wrong": area_under_curve(
                    [step.p_true or 0.0 for step in judged], [step.is_progress for step in judged]
                ),
                "probability_tells_right_from_wrong": area_under_curve([step.probability for step in steps], right),
            }
        )
    return rows


def area_under_curve(figures: Sequence[float], labels: Sequence[bool]) -> float | None:
    """How often a right step has the higher figure than a wrong one, ties as half. None where all are alike."""
    right = np.array([figure for figure, label in zip(figures, labels, strict=True) if label])
    wrong = np.array([figure for figure, label in zip(figures, labels, strict=True) if not label])
    if not len(right) or not len(wrong):
        return None
    above = (right[:, None] > wrong[None, :]).mean()
    return float(above + 0.5 * (right[:, None] == wrong[None, :]).mean())


def _large_share(played: Sequence[Played]) -> float:
    return sum(each.large_steps for each in played) / sum(len(each.speakers) for each in played)


def _interval(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Mean, with the 95% interval of the mean over resampled tasks."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (_RESAMPLES, len(values)))].mean(axis=1)
    return {
        "mean": float(values.mean()),
        "low": float(np.quantile(means, 0.025)),
        "high": float(np.quantile(means, 0.975)),
    }
