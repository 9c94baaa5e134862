"""The outcomes of sampled generation, counted against their exact probabilities: the test and its power.

Three tokens are generated in as many steps as the drafts allow, 20,000 times, and the 64 outcomes are counted:
chi-square, 63 degrees of freedom. At alpha = 0.001 the critical value is 103.4; a non-centrality of 95 exceeds it with
probability 0.99. With n = 20,000 that is an effect of w = sqrt(95 / n) = 0.069 in Cohen's measure, sqrt(sum((q - p)^2 /
p)): a rule that moves about 3% of the probability to other outcomes is found 99 times in 100. A right rule fails once
in 1,000 seeds; seeds are fixed, so a passing run stays passing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import torch

from agentinfer.kernels import Verified
from agentinfer.kernels.example_trees import distinct_siblings, random_parents

VOCAB, HORIZON, RUNS, ALPHA, WIDTH = 4, 3, 20_000, 1e-3, 6
Context = tuple[int, ...]
# (tokens [width], parents [width], probabilities [width, vocab], coins [n, width]) -> new tokens of each of n runs
Rule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], list[Context]]


@cache
def target(context: Context) -> torch.Tensor:
    """The model: an uneven distribution over the next token for each context."""
    generator = torch.Generator().manual_seed(17 + sum((token + 1) * 5**i for i, token in enumerate(context)))
    weights = torch.rand(VOCAB, generator=generator) + 0.2
    return weights / weights.sum()


@cache
def draft(context: Context, is_chain: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A draft fixed by its context: tokens, parents, and the model's probabilities behind each node."""
    generator = torch.Generator().manual_seed(29 + sum((token + 1) * 7**i for i, token in enumerate(context)))
    parents = random_parents("chain" if is_chain else "tree", 1, WIDTH, generator)
    tokens = distinct_siblings(parents, VOCAB, generator)
    paths = [context]
    for node in range(1, WIDTH):
        paths.append((*paths[int(parents[0, node].clamp(min=0))], int(tokens[0, node])))
    return tokens[0], parents[0], torch.stack([target(path) for path in paths])


def p_value(rule: Rule, is_chain: bool, seed: int) -> float:
    """Of the outcomes of RUNS runs under `rule`, given that they follow the model."""
    generator = torch.Generator().manual_seed(seed)
    counts = dict.fromkeys(itertools.product(range(VOCAB), repeat=HORIZON), 0)
    waiting: dict[Context, int] = {(): RUNS}
    while waiting:
        context, runs = waiting.popitem()
        tokens, parents, probabilities = draft(context, is_chain)
        coins = torch.rand(runs, 2 * WIDTH, generator=generator)
        for new in rule(tokens, parents, probabilities, coins):
            reached = (*context, *new)[:HORIZON]
            if len(reached) == HORIZON:
                counts[reached] += 1
            else:
                waiting[reached] = waiting.get(reached, 0) + 1
    observed = torch.tensor(list(counts.values()), dtype=torch.float64)
    expected = RUNS * torch.tensor([float(probability(outcome)) for outcome in counts], dtype=torch.float64)
    assert observed.sum() == RUNS
    assert expected.min() > 5, "too few expected for the chi-square distribution"
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2))


def probability(outcome: Context) -> torch.Tensor:
    factors = [target(outcome[:i])[token] for i, token in enumerate(outcome)]
    return torch.stack(factors).double().prod()


def new_tokens(verified: Verified) -> list[Context]:
    """What each run gained."""
    paths, lens, predict = verified.accept_index.tolist(), verified.accept_lens.tolist(), verified.predict.tolist()
    return [tuple(predict[row] for row in path[:length]) for path, length in zip(paths, lens, strict=True)]
