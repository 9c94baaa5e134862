"""Greedy verification of a draft against the recorded reply."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.drafting.drafter import BenchmarkError, Draft


def accepted_path(draft: Draft, truth: Sequence[int]) -> list[int]:
    """The drafted nodes of the longest path from the root that spells a prefix of `truth`, root left out.

    One pass: a parent comes before its children, so the children of the path's end are still ahead.
    """
    path: list[int] = []
    end = 0
    for node in range(1, len(draft.tokens)):
        if len(path) == len(truth):
            break
        if draft.parents[node] == end and draft.tokens[node] == truth[len(path)]:
            path.append(node)
            end = node
    return path


def check_draft(draft: Draft, budget: int) -> None:
    """Raise BenchmarkError where a drafter breaks its word: the width, the order of nodes, or falling probabilities."""
    width = len(draft.tokens)
    if not 1 <= width <= budget:
        raise BenchmarkError(f"a draft has 1 to {budget} nodes, the last verified token included; this one has {width}")
    if len(draft.parents) != width or any(not 0 <= parent < node for node, parent in _drafted(draft.parents)):
        raise BenchmarkError(f"a drafted node's parent is an earlier node; got parents {draft.parents}")
    chances = draft.path_probability
    if chances is not None and (len(chances) != width or any(not 0.0 <= p <= 1.0 for p in chances)):
        raise BenchmarkError(f"path_probability: expected {width} chances between 0 and 1, got {chances}")


def _drafted(parents: Sequence[int]) -> list[tuple[int, int]]:
    return list(enumerate(parents))[1:]
