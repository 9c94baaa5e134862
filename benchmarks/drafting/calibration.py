"""How far a drafter's own estimate of acceptance comes true."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.drafting.drafter import Draft

NUM_BINS = 20


@dataclass(slots=True)
class Calibration:
    """Drafted nodes by their path probability, in bins of equal width, and steps by their expected tokens, in ones."""

    drafted: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    expected: list[float] = field(default_factory=lambda: [0.0] * NUM_BINS)
    accepted: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    steps: dict[int, list[float]] = field(default_factory=dict)

    def add(self, draft: Draft, accepted_path: list[int]) -> None:
        """One verified draft; drafts without estimates are left out."""
        chances = draft.path_probability
        if chances is None:
            return
        for chance in chances[1:]:
            place = _bin_of(chance)
            self.drafted[place] += 1
            self.expected[place] += chance
        for node in accepted_path:
            self.accepted[_bin_of(chances[node])] += 1
        expected_tokens = 1.0 + sum(chances[1:])
        step = self.steps.setdefault(int(expected_tokens), [0, 0.0, 0.0])
        step[0] += 1
        step[1] += expected_tokens
        step[2] += 1 + len(accepted_path)

    def summary(self) -> dict[str, Any] | None:
        """Means a bin, and the mean gap between expected and seen over all nodes. None without estimates."""
        num_nodes = sum(self.drafted)
        if num_nodes == 0:
            return None
        gap = sum(abs(e - a) for e, a in zip(self.expected, self.accepted, strict=True)) / num_nodes
        num_steps = sum(step[0] for step in self.steps.values())
        return {
            "mean_gap": gap,
            "expected_tokens_per_step": sum(step[1] for step in self.steps.values()) / num_steps,
            "nodes": [
                {"drafted": n, "expected": e / n, "accepted": a / n}
                for n, e, a in zip(self.drafted, self.expected, self.accepted, strict=True)
                if n
            ],
            "steps": [
                {"steps": int(n), "expected_tokens": e / n, "tokens": t / n}
                for _, (n, e, t) in sorted(self.steps.items())
            ],
        }


def _bin_of(chance: float) -> int:
    return min(int(chance * NUM_BINS), NUM_BINS - 1)
