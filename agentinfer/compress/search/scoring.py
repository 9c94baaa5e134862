"""Scoring by token probability: the prompt, the two answers, and what any model that scores must offer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from agentinfer.errors import AgentInferError

# Pairs of answers, tried in this order. Most tokenizers have a word with its leading space as one token; those that put
# the space in themselves have the bare word.
LABELS = ((" yes", " no"), ("yes", "no"), (" Yes", " No"), ("Yes", "No"))


class ScorerError(AgentInferError):
    """A model gave no scores; the message says which model and why. Ranking goes on without it."""


class Scorer(Protocol):
    """A model that judges many texts in one call."""

    async def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """For each text the probability, 0 to 1, that it helps with `query`. Raises ScorerError."""
        ...


def prompt_head(query: str) -> str:
    """The part of the prompt that all results of a search share, so that its KV is computed once.

    The two examples show the form of the answer, which models without instruction tuning need.
    """
    return (
        "Does the search result help to answer the question? Answer yes or no.\n\n"
        "Question: height of Mont Blanc in metres\n"
        "Search result: Mont Blanc, the highest mountain of the Alps, rises 4,806 m above sea level.\n"
        "Helpful: yes\n\n"
        "Question: who wrote the opera Fidelio\n"
        "Search result: Cheap flights to Vienna. Compare prices and book your holiday today.\n"
        "Helpful: no\n\n"
        f"Question: {' '.join(query.split())}\n"
    )


def prompt_item(text: str) -> str:
    """The rest of the prompt for one result; the next token is the answer. In one line, so that it adds no example."""
    return f"Search result: {' '.join(text.split())}\nHelpful:"


def label_ids(encode: Callable[[str], Sequence[int]]) -> tuple[int, int]:
    """The token ids of yes and no; `encode` gives a text's tokens without special ones.

    Raises ScorerError where no pair of `LABELS` is one token each: probabilities of longer answers are not compared.
    """
    seen = []
    for labels in LABELS:
        yes, no = (list(encode(label)) for label in labels)
        if len(yes) == len(no) == 1 and yes != no:
            return yes[0], no[0]
        seen.append(f"{labels[0]!r} {yes}, {labels[1]!r} {no}")
    raise ScorerError(
        f"this tokenizer has no single tokens for yes and no ({'; '.join(seen)}): "
        "rank without the model, or with a scorer on another endpoint"
    )


def checked(scores: Sequence[float], num_texts: int) -> list[float]:
    """`scores` as floats. Raises ScorerError where they are not one probability for each text."""
    if len(scores) != num_texts:
        raise ScorerError(f"the model gave {len(scores)} scores for {num_texts} texts")
    for place, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0.0 <= score <= 1.0:
            raise ScorerError(f"the model gave {score!r} for text {place}, expected a probability")
    return [float(score) for score in scores]


def yes_probability(yes_logprob: float, no_logprob: float) -> float:
    """P(yes) where yes and no are the only answers: exp(y) / (exp(y) + exp(n))."""
    return 1.0 / (1.0 + math.exp(min(700.0, no_logprob - yes_logprob)))
