"""Sampled verification keeps the target's distribution; rules that do not are found (`tests/sampled_outcomes.py`)."""

from __future__ import annotations

import itertools

import pytest
import torch

from agentinfer.kernels import verify_sampled
from tests.sampled_outcomes import ALPHA, HORIZON, RUNS, VOCAB, WIDTH, Context, Rule, new_tokens, p_value, probability


def ours(
    tokens: torch.Tensor, parents: torch.Tensor, probabilities: torch.Tensor, coins: torch.Tensor
) -> list[Context]:
    runs = len(coins)
    weights, parents = probabilities.expand(runs, -1, -1), parents.expand(runs, -1)
    return new_tokens(verify_sampled(tokens.expand(runs, -1), weights, coins[:, :WIDTH], parents))


def upstream(threshold_single: float, threshold_acc: float, keeps_rejected: bool = False) -> Rule:
    """The rule of SGLang's `tree_speculative_sampling_target_only` for one run at a time.

    A child is accepted when the node's coin falls below the summed probability of the children so far over
    `threshold_acc`, or when its own reaches `threshold_single`; the last token is drawn from what was not rejected.
    `keeps_rejected` forgets the second half, a mistake one can make.
    """

    def walk(parents: list[int], tokens: list[int], rows: list[list[float]], coins: list[float]) -> Context:
        node, new = 0, []
        while True:
            summed, rejected = 0.0, set()
            for child in (c for c in range(1, WIDTH) if parents[c] == node):
                share = rows[node][tokens[child]]
                summed += share
                if coins[node] < summed / threshold_acc or share >= threshold_single:
                    node = child
                    new.append(tokens[child])
                    break
                rejected.add(tokens[child])
            else:
                left = [0.0 if t in rejected and not keeps_rejected else share for t, share in enumerate(rows[node])]
                passed = [sum(left[: t + 1]) > coins[-1] * sum(left) for t in range(VOCAB)]
                return (*new, passed.index(True) if True in passed else VOCAB - 1)

    def rule(
        tokens: torch.Tensor, parents: torch.Tensor, probabilities: torch.Tensor, coins: torch.Tensor
    ) -> list[Context]:
        of_tree = parents.tolist(), tokens.tolist(), probabilities.double().tolist()
        return [walk(*of_tree, run) for run in coins.tolist()]

    return rule


SHAPES = pytest.mark.parametrize("is_chain", [False, True], ids=["trees", "chains"])


@SHAPES
@pytest.mark.parametrize("seed", [1, 2])
def test_sampled_verification_keeps_the_targets_distribution(is_chain, seed):
    assert p_value(ours, is_chain, seed) > ALPHA


@SHAPES
def test_upstreams_rule_keeps_it_with_its_default_thresholds(is_chain):
    assert p_value(upstream(1.0, 1.0), is_chain, 1) > ALPHA


@SHAPES
@pytest.mark.parametrize(
    "wrong",
    [upstream(0.3, 1.0), upstream(1.0, 0.9), upstream(1.0, 1.0, keeps_rejected=True)],
    ids=["accepts what is likely", "accepts a little more", "forgets what was rejected"],
)
def test_wrong_rules_are_found(wrong, is_chain):
    assert p_value(wrong, is_chain, 1) < ALPHA


def test_a_distortion_of_the_stated_size_is_found_as_often_as_stated():
    """Outcomes drawn from p moved by w = 0.069 fail the test in at least 95 of 100 trials (0.99 are expected)."""
    generator = torch.Generator().manual_seed(5)
    exact = torch.stack([probability(outcome) for outcome in itertools.product(range(VOCAB), repeat=HORIZON)])
    moved = exact * (1 + 0.069 * torch.tensor([1.0, -1.0]).repeat(len(exact) // 2).double())
    moved /= moved.sum()
    assert float(((moved - exact) ** 2 / exact).sum().sqrt()) == pytest.approx(0.069, abs=0.003)
    found = 0
    for _ in range(100):
        drawn = torch.multinomial(moved, RUNS, replacement=True, generator=generator)
        observed = torch.bincount(drawn, minlength=len(exact)).double()
        statistic = ((observed - RUNS * exact) ** 2 / (RUNS * exact)).sum()
        found += float(torch.special.gammaincc(torch.tensor(31.5).double(), statistic / 2)) < ALPHA
    assert found >= 95
