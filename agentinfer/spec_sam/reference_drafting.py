"""Drafting in plain Python: the specification of csrc/draft_stream.cpp and draft_tree.cpp, oracle and fallback.

Every operation on a probability happens in the same order as there, in doubles, so drafts are equal to the last bit.
Not for several threads.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from agentinfer.spec_sam.reference import (
    ROOT,
    Automaton,
    Match,
    Offsets,
    Tokens,
    _check_flat,
    _check_offsets,
    _checked_tokens,
)
from agentinfer.spec_sam.reference_correction import Features, features_of
from agentinfer.spec_sam.reference_draft_model import NUM_KINDS, DraftModel, escape_context

SESSION: Final = 0  # the kind of a stream's own text; 1 related, 2 memory, 3 retrieved
MAX_SOURCES: Final = 6  # of a stream, its own text included
MAX_WIDTH: Final = 4096

_KEPT: Final = 64  # tokens that a later source is matched from
_MAX_MATCH_LEVELS: Final = 6
_MAX_DEGREE: Final = 32
_MAX_PROBABILITY: Final = 0.99
_MIN_PROBABILITY: Final = 0.001
_HOPELESS: Final = 0.3  # of the least worthwhile probability: no correction will lift it so far
_RECENCY: Final = 0.5  # occurrences added to the latest continuation in the session's own text
_MAX_CREDITS: Final = 4096


@dataclass(slots=True)
class _Source:
    automaton: Automaton
    kind: int
    log_similarity: float
    match: Match


@dataclass(slots=True)
class _Candidate:
    """A possible next token: what each source gives it, the longest match there that proposes it, and where."""

    token: int
    by_source: list[float]
    level: list[int | None]
    latest_end: list[int]
    probability: float = 0.0  # of the mixture


class _Waiting(NamedTuple):
    """A node that may come next. The most probable is the smallest; ties go to the earlier parent, the lower token."""

    negated_probability: float  # of the whole path
    parent: int
    token: int
    log_odds: float
    features: Features


@dataclass(slots=True)
class _Node:
    token: int
    parent: int  # -1 for the root
    path_probability: float
    log_odds: float  # of its own token, corrected but not calibrated
    features: Features  # of its proposal
    matches: list[Match]  # in each source
    candidates: dict[int, _Candidate] | None = None  # by token; None where the node was not expanded
    escapes: list[list[int]] = field(default_factory=list)  # of each source, the contexts of the levels asked
    shares: list[float] = field(default_factory=list)  # of each source in the mixture


class DraftStream:
    """One request's stream of tokens, followed through the session's own text, which it extends, and other sources."""

    def __init__(self, model: DraftModel, own: Automaton) -> None:
        self._model = model
        self._own = own
        self._sources = [_Source(own, SESSION, 0.0, Match(ROOT, 0))]
        self._recent: list[int] = []
        self._nodes: list[_Node] = []  # the last draft, until the tokens that decide on it have come
        self._credits: list[tuple[int, int]] = []

    def add_source(self, automaton: Automaton, kind: int, similarity: float = 1.0) -> int:
        """A further source, matched from the stream's last tokens on; returns its index. `kind` is 1 (related),
        2 (memory) or 3 (retrieved); `similarity`, in (0, 1], multiplies its say in the mixture."""
        if not SESSION < kind < NUM_KINDS:
            raise ValueError(f"kind is {kind}; expected 1 to {NUM_KINDS - 1}")
        if any(source.automaton is automaton for source in self._sources):
            raise ValueError("the automaton is a source of this stream already")
        if len(self._sources) == MAX_SOURCES:
            raise ValueError(f"a stream has at most {MAX_SOURCES} sources, its own text included")
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity is {similarity:g}; expected more than 0, at most 1")
        source = _Source(automaton, kind, math.log(similarity), Match(ROOT, 0))
        _follow(source, self._recent)
        self._sources.append(source)
        self._nodes = []
        return len(self._sources) - 1

    def seek(self, tokens: Tokens) -> None:
        """The stream stands after these tokens, which its own automaton holds already."""
        self._recent = _checked_tokens(tokens)[-_KEPT:]
        self._nodes = []
        for source in self._sources[1:]:
            source.match = Match(ROOT, 0)
            _follow(source, self._recent)

    def take_credits(self) -> tuple[Tokens, Tokens]:
        """Accepted tokens that a source other than the own text gave the most for, since the last call: the sources,
        and the positions in their texts."""
        taken, self._credits = self._credits, []
        sources, positions = ([credit[side] for credit in taken] for side in (0, 1))
        return np.array(sources, dtype=np.int32), np.array(positions, dtype=np.int32)

    @property
    def last_token(self) -> int:
        return self._recent[-1] if self._recent else 0

    def accept(self, tokens: Tokens) -> None:
        """These came: learns what the last draft was worth, extends the own text, follows the other sources."""
        came = _checked_tokens(tokens)
        self._learn(came)
        self._nodes = []
        self._own.extend(tokens)
        for source in self._sources[1:]:
            _follow(source, came)
        self._recent += came[-_KEPT:]
        if len(self._recent) > 2 * _KEPT:
            self._recent = self._recent[-_KEPT:]

    def draft(self, max_nodes: int, max_children: int, min_path_probability: float) -> list[_Node]:
        """The best tree of at most `max_nodes` tokens that may come next; node 0 is the root."""
        matches = [self._own.suffix_match()]
        matches += [_settled(source.automaton, source.match) for source in self._sources[1:]]
        self._nodes = [_Node(self.last_token, -1, 1.0, 0.0, (), matches)]
        waiting: list[_Waiting] = []  # a heap
        while len(self._nodes) <= max_nodes:
            newest = len(self._nodes) - 1
            if newest == 0 or not self._model.stops(self._nodes[newest].token):
                for child in self._expand(newest, max_children, min_path_probability):
                    heapq.heappush(waiting, child)
            if not waiting:
                break
            best = heapq.heappop(waiting)
            matches = [
                source.automaton.step(match, best.token)
                for source, match in zip(self._sources, self._nodes[best.parent].matches, strict=True)
            ]
            self._nodes.append(
                _Node(best.token, best.parent, -best.negated_probability, best.log_odds, best.features, matches)
            )
        return self._nodes

    def _expand(self, index: int, max_children: int, worth: float) -> Iterator[_Waiting]:
        """The node's children that are worth it."""
        node = self._nodes[index]
        node.candidates = {}
        for source in range(len(self._sources)):
            self._weigh_source(source, node, node.candidates, worth)
        self._mix(node, node.candidates)
        best = sorted(node.candidates.values(), key=lambda each: (-each.probability, each.token))
        for candidate in best[:max_children] if max_children else best:
            if node.path_probability * candidate.probability < _HOPELESS * worth:
                continue
            features = self._features_of(index, candidate)
            log_odds = self._model.correction.odds(candidate.probability, features)
            probability = node.path_probability * self._model.calibrated(log_odds)
            if probability >= worth:
                yield _Waiting(-probability, index, candidate.token, log_odds, features)

    def _weigh_source(self, index: int, node: _Node, candidates: dict[int, _Candidate], worth: float) -> None:
        """Prediction by partial matching in one source: from the longest match to shorter ones."""
        source = self._sources[index]
        state: int | None = node.matches[index].state
        length = node.matches[index].length
        contexts: list[int] = []
        left = 1.0
        while state and len(contexts) < _MAX_MATCH_LEVELS and left * node.path_probability > worth:
            seen = source.automaton.continuations(state, _MAX_DEGREE + 1)
            if len(seen) > _MAX_DEGREE:
                break  # shorter matches have still more continuations
            if seen:
                latest = max(seen, key=lambda each: each.latest_end)
                occurrences = sum(each.count for each in seen)
                context = escape_context(source.kind, len(contexts), length, len(seen), occurrences)
                recency = _RECENCY if source.kind == SESSION else 0.0
                escape = self._model.escape(context)
                share = left * (1.0 - escape) / (occurrences + recency)
                for each in seen:
                    count = each.count + recency if each is latest else float(each.count)
                    candidate = candidates.setdefault(each.token, self._new_candidate(each.token))
                    candidate.by_source[index] += share * count
                    if candidate.level[index] is None:
                        candidate.level[index] = len(contexts)
                        candidate.latest_end[index] = each.latest_end
                left *= escape
                contexts.append(context)
            state = source.automaton.info(state).link
            length = source.automaton.info(state).longest if state else 0
        node.escapes.append(contexts)

    def _mix(self, node: _Node, candidates: dict[int, _Candidate]) -> None:
        """Sources that have something to say share the mixture by the softmax of their weights."""
        node.shares = [
            math.exp(self._model.weight(source.kind, match.length) + source.log_similarity) if contexts else 0.0
            for source, match, contexts in zip(self._sources, node.matches, node.escapes, strict=True)
        ]
        total = _sum_in_order(node.shares)
        if total == 0:
            return
        node.shares = [share / total for share in node.shares]
        for candidate in candidates.values():
            given = [share * each for share, each in zip(node.shares, candidate.by_source, strict=True)]
            candidate.probability = min(_sum_in_order(given), _MAX_PROBABILITY)

    def _features_of(self, index: int, candidate: _Candidate) -> Features:
        node = self._nodes[index]
        before: list[int] = []  # the path's tokens, then the stream's, the nearest first
        while self._nodes[index].parent >= 0:
            before.append(self._nodes[index].token)
            index = self._nodes[index].parent
        before += [*self._recent[-2:][::-1], 0, 0]
        longest_other = max((match.length for match in node.matches[1:]), default=0)
        level_other = min((level for level in candidate.level[1:] if level is not None), default=None)
        evidence = _length_class(node.matches[0].length) * 8 + _length_class(longest_other)
        evidence = (evidence * 3 + _support(candidate.level[0])) * 3 + _support(level_other)
        return features_of(candidate.token, before[0], before[1], evidence)

    def _learn(self, tokens: list[int]) -> None:
        index = 0 if self._nodes else None
        for token in tokens:
            if index is None:
                return
            self._learn_at(self._nodes[index], token)
            parent, index = index, None
            for child, node in enumerate(self._nodes):
                if node.parent == parent:
                    estimate = min(max(1.0 / (1.0 + math.exp(-node.log_odds)), _MIN_PROBABILITY), _MAX_PROBABILITY)
                    self._model.learn_calibration(node.log_odds, node.token == token)
                    self._model.correction.learn(estimate, node.features, node.token == token)
                    index = child if node.token == token else index

    def _learn_at(self, node: _Node, token: int) -> None:
        if node.candidates is None:
            return
        came = node.candidates.get(token)
        for index, contexts in enumerate(node.escapes):
            level = came.level[index] if came is not None else None
            for asked, context in enumerate(contexts if level is None else contexts[: level + 1]):
                self._model.learn_escape(context, asked != level)
        if came is None:
            return
        given = [share * each for share, each in zip(node.shares, came.by_source, strict=True)]
        total = _sum_in_order(given)
        if total <= 0:
            return
        for source, match, share, gave in zip(self._sources, node.matches, node.shares, given, strict=True):
            if share != 0:
                self._model.learn_weight(source.kind, match.length, gave / total - share)
        best = given.index(max(given))
        if best > 0 and len(self._credits) < _MAX_CREDITS:
            self._credits.append((best, came.latest_end[best]))

    def _new_candidate(self, token: int) -> _Candidate:
        count = len(self._sources)
        return _Candidate(token, [0.0] * count, [None] * count, [-1] * count)


@dataclass(frozen=True, slots=True)
class DraftRows:
    """The caller's flat arrays for the drafts of a batch, max_nodes + 1 wide a stream (num_nodes_out: 1)."""

    max_nodes: int
    tokens_out: Tokens
    parents_out: Tokens
    probability_out: npt.NDArray[np.float32]
    num_nodes_out: Tokens

    def __post_init__(self) -> None:
        _check_flat(self.tokens_out, np.dtype(np.int32), "tokens_out")
        _check_flat(self.parents_out, np.dtype(np.int32), "parents_out")
        _check_flat(self.probability_out, np.dtype(np.float32), "probability_out")
        _check_flat(self.num_nodes_out, np.dtype(np.int32), "num_nodes_out")
        if not 0 <= self.max_nodes <= MAX_WIDTH:
            raise ValueError(f"max_nodes is {self.max_nodes}; expected 0 to {MAX_WIDTH}")
        rows, width = len(self.num_nodes_out), self.max_nodes + 1
        for name in ("tokens_out", "parents_out", "probability_out"):
            if len(getattr(self, name)) != rows * width:
                raise ValueError(f"{name}: expected room for {rows} rows of {width}, got {len(getattr(self, name))}")


def draft_batch(
    streams: Sequence[DraftStream],
    tokens: Tokens,
    offsets: Offsets,
    rows: DraftRows,
    max_children: int,
    min_path_probability: float,
) -> int:
    """Takes tokens[offsets[i]:offsets[i + 1]] into streams[i] and drafts a tree of at most `rows.max_nodes` tokens into
    row i; padding has parent -1 and probability 0. Returns how many tokens were drafted in all."""
    _check_flat(tokens, np.dtype(np.int32), "tokens")
    for row, stream in enumerate(streams):
        if stream is None:
            raise ValueError(f"streams[{row}] is None")
    _check_offsets(offsets, len(streams), len(tokens))
    if len(streams) != len(rows.num_nodes_out):
        raise ValueError(f"rows: expected room for {len(streams)} streams, got {len(rows.num_nodes_out)}")
    if max_children < 0:
        raise ValueError(f"max_children is {max_children}; expected 0 (any number) or more")
    if not 0 < min_path_probability <= 1:
        raise ValueError(f"min_path_probability is {min_path_probability:g}; expected more than 0, at most 1")
    width = rows.max_nodes + 1
    _checked_tokens(tokens)  # all of them before the first stream changes
    num_drafted = 0
    for row, stream in enumerate(streams):
        stream.accept(tokens[offsets[row] : offsets[row + 1]])
        nodes = stream.draft(rows.max_nodes, max_children, min_path_probability)
        padding = width - len(nodes)
        cells = slice(row * width, row * width + width)
        rows.tokens_out[cells] = [node.token for node in nodes] + [0] * padding
        rows.parents_out[cells] = [node.parent for node in nodes] + [-1] * padding
        rows.probability_out[cells] = [node.path_probability for node in nodes] + [0.0] * padding
        rows.num_nodes_out[row] = len(nodes)
        num_drafted += len(nodes) - 1
    return num_drafted


def _length_class(length: int) -> int:
    return bisect_right((1, 2, 3, 4, 8, 16, 32), length)


def _support(level: int | None) -> int:
    """How a source stands to a token: its longest match proposes it (1), a shorter one (0), none (2)."""
    return 2 if level is None else int(level == 0)


def _sum_in_order(values: list[float]) -> float:
    """The plain sum: newer versions of the built-in one compensate for rounding."""
    total = 0.0
    for value in values:
        total += value
    return total


def _follow(source: _Source, tokens: list[int]) -> None:
    for token in tokens:
        source.match = source.automaton.step(source.match, token)


def _settled(automaton: Automaton, match: Match) -> Match:
    """The state that now holds the match's string: a split since moves shorter strings to the link."""
    state = match.state
    while (link := automaton.info(state).link) is not None and match.length <= automaton.info(link).longest:
        state = link
    return Match(state, match.length)
