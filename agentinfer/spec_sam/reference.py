"""The suffix automaton in plain Python: the specification of the compiled core, its oracle, and its fallback.

Construction after Blumer et al. (1985), for several documents after Mohri, Moreno and Weinstein (2009, section 4).
State numbers, matches and counts equal the compiled core's after every call. Not safe to share between threads while it
grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]

ROOT = 0
SEPARATOR = -1  # between two documents in `Automaton.tokens`; never a token
_MAX_TOKENS = 1 << 29


@dataclass(frozen=True, slots=True)
class Match:
    """The last `length` tokens of a stream, found in the automaton's `state`. Length 0 is the root, state 0."""

    state: int
    length: int


@dataclass(frozen=True, slots=True)
class Continuation:
    """A token that followed a state's strings `count` times, the latest time at position `latest_end`."""

    token: int
    state: int
    count: int
    latest_end: int


@dataclass(frozen=True, slots=True)
class StateInfo:
    """The strings of `shortest` to `longest` tokens that end at the same positions.

    `link` is the state of the next shorter suffix, None for the root. `count` is the number of occurrences (for the
    root, of tokens) and `latest_end` the position of the last token of the latest one; both are None where `shortest`
    exceeds max_match + 1, and `latest_end` also before the first token.
    """

    shortest: int
    longest: int
    link: int | None
    count: int | None
    latest_end: int | None


class Automaton:
    """Every string of the documents read so far, with exact counts of those of up to `max_match` + 1 tokens.

    Tokens are int32 and not negative. A document is text that no match crosses the end of. Methods that take tokens
    want a contiguous one-dimensional int32 array and raise ValueError, with nothing changed, for any other array.
    """

    def __init__(self, max_match: int = 64) -> None:
        if not 1 <= max_match <= _MAX_TOKENS:
            raise ValueError(f"max_match is {max_match}; expected 1 to {_MAX_TOKENS}")
        self.max_match = max_match
        self.num_count_updates = 0
        self._text: list[int] = []
        self._longest = [0]
        self._link: list[int | None] = [None]
        self._count = [0]
        self._latest_end = [-1]
        self._edges: list[dict[int, int]] = [{}]
        self._num_separators = 0
        self._document_length = 0
        self._last = ROOT
        self._tail = Match(ROOT, 0)  # the document's suffix of at most max_match + 1 tokens: where counting starts

    @property
    def num_tokens(self) -> int:
        return len(self._text) - self._num_separators

    @property
    def num_documents(self) -> int:
        return self._num_separators + (self._document_length > 0)

    @property
    def num_states(self) -> int:
        return len(self._longest)

    @property
    def num_edges(self) -> int:
        return sum(map(len, self._edges))

    @property
    def tokens(self) -> Tokens:
        """The whole text, read-only, a SEPARATOR after each document but the current one."""
        return _frozen(self._text)

    def extend(self, tokens: Tokens) -> None:
        """Append to the current document."""
        checked = _checked_tokens(tokens)
        if len(self._text) + len(checked) > _MAX_TOKENS:
            raise ValueError(
                f"the automaton holds {self.num_tokens} tokens and cannot take {len(checked)} more; its limit is "
                f"{_MAX_TOKENS}: start another automaton"
            )
        for token in checked:
            self._append(token)

    def start_document(self) -> None:
        """End the current document; does nothing while it is empty."""
        if self._document_length == 0:
            return
        self._text.append(SEPARATOR)
        self._num_separators += 1
        self._document_length = 0
        self._last = ROOT
        self._tail = Match(ROOT, 0)

    def find(self, tokens: Tokens) -> int | None:
        """The state of this string, or None where it does not occur."""
        state = ROOT
        for token in _checked_tokens(tokens):
            if token not in self._edges[state]:
                return None
            state = self._edges[state][token]
        return state

    def step(self, match: Match, token: int) -> Match:
        """`match` followed by `token`: the longest suffix of both that occurs, at most max_match tokens."""
        settled = self._settle(match)
        state, length = settled.state, settled.length
        while token not in self._edges[state]:
            link = self._link[state]
            if link is None:
                return Match(ROOT, 0)
            state, length = link, self._longest[link]
        return self._settle(Match(self._edges[state][token], min(length + 1, self.max_match)))

    def suffix_match(self) -> Match:
        """The longest suffix of the current document, at most max_match tokens, that also occurs before its end."""
        match = self._settle(Match(self._tail.state, min(self._tail.length, self.max_match)))
        link = self._link[match.state]
        if link is None or self._count[match.state] > 1:
            return match
        return Match(link, self._longest[link])

    def info(self, state: int) -> StateInfo:
        self._check_state(state)
        shortest = self._shortest(state)
        is_counted = shortest <= self.max_match + 1
        latest_end = self._latest_end[state]
        return StateInfo(
            shortest,
            self._longest[state],
            self._link[state],
            self._count[state] if is_counted else None,
            latest_end if is_counted and latest_end >= 0 else None,
        )

    def continuations(self, state: int, limit: int) -> list[Continuation]:
        """The `limit` most frequent continuations by count, then recency, best first; visits all the state's edges.

        Raises ValueError where `shortest` exceeds max_match, since such continuations are not counted.
        """
        shortest = self.info(state).shortest
        if shortest > self.max_match:
            raise ValueError(
                f"state {state} stands for strings of {shortest} tokens and more; continuations are counted up to "
                f"max_match = {self.max_match}"
            )
        seen = [
            Continuation(token, target, self._count[target], self._latest_end[target])
            for token, target in self._edges[state].items()
        ]
        return sorted(seen, key=lambda each: (-each.count, -each.latest_end))[:limit]

    def following(self, state: int, limit: int) -> Tokens:
        """What followed the state's latest occurrence that anything followed: at most `limit` tokens, same document."""
        self._check_state(state)
        first = max((self._latest_end[target] for target in self._edges[state].values()), default=None)
        if first is None:
            return _frozen([])
        text = self._text[first : first + limit]
        return _frozen(text[: text.index(SEPARATOR)] if SEPARATOR in text else text)

    def memory_bytes(self) -> int:
        """A rough figure: CPython's small lists, dicts and ints."""
        return 8 * len(self._text) + 100 * self.num_states + 100 * self.num_edges

    def check_integrity(self) -> None:
        """Recompute every derived value from the text alone; RuntimeError names the broken rule and state."""
        counts = [0] * self.num_states
        latest_ends = [-1] * self.num_states
        state = ROOT
        for position, token in enumerate(self._text):
            if token == SEPARATOR:
                state = ROOT
                continue
            if token not in self._edges[state]:
                raise RuntimeError(f"rule text: the document at position {position} is not recognised")
            state = self._edges[state][token]
            counts[state] += 1
            latest_ends[state] = position
        if state != self._last:
            raise RuntimeError(f"rule document: the current document ends in state {self._last}, the text in {state}")
        for state in sorted(range(self.num_states), key=lambda each: -self._longest[each]):
            kept = (self._count[state], self._latest_end[state])
            recounted = (counts[state], latest_ends[state])
            if self._shortest(state) <= self.max_match + 1 and kept != recounted:
                raise RuntimeError(
                    f"rule count: state {state} has (count, latest end) {kept}; the text says {recounted}"
                )
            link = self._link[state]
            if link is not None:
                if self._longest[link] >= self._longest[state]:
                    raise RuntimeError(f"rule link: state {state} links to {link}, which is not shorter")
                counts[link] += counts[state]
                latest_ends[link] = max(latest_ends[link], latest_ends[state])

    def _append(self, token: int) -> None:
        position = len(self._text)
        self._text.append(token)
        self._document_length += 1
        self._last = self._extend_state(self._last, token)

        next_state = self._edges[self._tail.state][token]
        self._tail = self._settle(Match(next_state, min(self._tail.length + 1, self.max_match + 1)))
        state: int | None = self._tail.state
        while state is not None:
            self._count[state] += 1
            self._latest_end[state] = position
            self.num_count_updates += 1
            state = self._link[state]
        if self._count[self._last] == 0:  # it stands only for strings too long to be counted
            self._count[self._last] = 1
            self._latest_end[self._last] = position

    def _extend_state(self, last: int, token: int) -> int:
        longest = self._longest[last] + 1
        seen = self._edges[last].get(token)
        if seen is not None:  # a later document that begins like an earlier one
            if self._longest[seen] == longest:
                return seen
            return self._split(last, token, seen)

        created = self._new_state(longest, {})
        ancestor: int | None = last
        while ancestor is not None and token not in self._edges[ancestor]:
            self._edges[ancestor][token] = created
            ancestor = self._link[ancestor]
        if ancestor is None:
            self._link[created] = ROOT
        else:
            target = self._edges[ancestor][token]
            if self._longest[target] != self._longest[ancestor] + 1:
                target = self._split(ancestor, token, target)
            self._link[created] = target
        return created

    def _split(self, source: int, token: int, original: int) -> int:
        """Give the strings of `original` that end a string of `source` and `token` a state of their own."""
        clone = self._new_state(self._longest[source] + 1, dict(self._edges[original]))
        self._link[clone] = self._link[original]
        self._count[clone] = self._count[original]
        self._latest_end[clone] = self._latest_end[original]
        self._link[original] = clone
        ancestor: int | None = source
        while ancestor is not None and self._edges[ancestor].get(token) == original:
            self._edges[ancestor][token] = clone
            ancestor = self._link[ancestor]
        return clone

    def _new_state(self, longest: int, edges: dict[int, int]) -> int:
        self._longest.append(longest)
        self._link.append(None)
        self._count.append(0)
        self._latest_end.append(-1)
        self._edges.append(edges)
        return len(self._longest) - 1

    def _settle(self, match: Match) -> Match:
        """The state that holds the match's string of exactly that length; splits move shorter strings to the link."""
        state = match.state
        while (link := self._link[state]) is not None and match.length <= self._longest[link]:
            state = link
        return Match(state, match.length)

    def _shortest(self, state: int) -> int:
        link = self._link[state]
        return 0 if link is None else self._longest[link] + 1

    def _check_state(self, state: int) -> None:
        if not 0 <= state < self.num_states:
            raise ValueError(f"state is {state}; this automaton has states 0 to {self.num_states - 1}")


class Cursor:
    """Follows one stream through an automaton: after each token, the longest suffix that occurs there.

    The automaton may grow between calls. A match found before stays true; a longer one that has become possible is only
    looked for by `rematch`.
    """

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._recent: list[int] = []
        self._match = Match(ROOT, 0)

    @property
    def match(self) -> Match:
        return self._match

    def advance(self, tokens: Tokens) -> Match:
        checked = _checked_tokens(tokens)
        for token in checked:
            self._match = self._automaton.step(self._match, token)
        self._recent = (self._recent + checked)[-self._automaton.max_match :]
        return self._match

    def rematch(self) -> Match:
        """Read the last max_match tokens again, so the match is the longest in the automaton as it is now."""
        self._match = Match(ROOT, 0)
        for token in self._recent:
            self._match = self._automaton.step(self._match, token)
        return self._match

    def reset(self) -> None:
        """Start a new stream."""
        self._recent = []
        self._match = Match(ROOT, 0)


def extend_batch(automata: Sequence[Automaton], tokens: Tokens, offsets: Offsets) -> None:
    """Extend automata[i] by tokens[offsets[i]:offsets[i + 1]]; all arrays are checked before any automaton changes."""
    _checked_tokens(tokens)
    _check_offsets(offsets, len(automata), len(tokens))
    for row, automaton in enumerate(automata):
        automaton.extend(tokens[offsets[row] : offsets[row + 1]])


def match_batch(
    cursors: Sequence[Cursor], tokens: Tokens, offsets: Offsets, states_out: Tokens, lengths_out: Tokens
) -> None:
    """Advance cursors[i] by tokens[offsets[i]:offsets[i + 1]] and write its match into the caller's arrays."""
    _checked_tokens(tokens)
    _check_offsets(offsets, len(cursors), len(tokens))
    for name, out in (("states_out", states_out), ("lengths_out", lengths_out)):
        _check_flat(out, np.dtype(np.int32), name)
        if len(out) != len(cursors):
            raise ValueError(f"{name}: expected room for {len(cursors)} rows, got {len(out)}")
    for row, cursor in enumerate(cursors):
        match = cursor.advance(tokens[offsets[row] : offsets[row + 1]])
        states_out[row] = match.state
        lengths_out[row] = match.length


def _frozen(values: list[int]) -> Tokens:
    array = np.array(values, dtype=np.int32)
    array.flags.writeable = False
    return array


def _checked_tokens(tokens: Tokens) -> list[int]:
    _check_flat(tokens, np.dtype(np.int32), "tokens")
    values: list[int] = tokens.tolist()
    for index, token in enumerate(values):
        if token < 0:
            raise ValueError(f"tokens[{index}] is {token}; a token id is between 0 and {2**31 - 1}")
    return values


def _check_flat(array: npt.NDArray[np.generic], dtype: np.dtype[np.generic], name: str) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a contiguous one-dimensional {dtype} array, got {type(array).__name__}")
    if array.dtype != dtype or array.ndim != 1 or not array.flags.c_contiguous:
        raise ValueError(
            f"{name}: expected a contiguous one-dimensional {dtype} array on the CPU, got {array.dtype} of shape "
            f"{array.shape} with strides {array.strides} bytes"
        )


def _check_offsets(offsets: Offsets, num_rows: int, num_tokens: int) -> None:
    _check_flat(offsets, np.dtype(np.int64), "offsets")
    if len(offsets) != num_rows + 1:
        raise ValueError(f"offsets: expected {num_rows + 1} for {num_rows} rows, got {len(offsets)}")
    if offsets[0] != 0:
        raise ValueError(f"offsets[0]: expected 0, got {offsets[0]}")
    for row in range(num_rows):
        if offsets[row] > offsets[row + 1]:
            raise ValueError(f"offsets[{row + 1}]: expected at least {offsets[row]}, got {offsets[row + 1]}")
    if offsets[num_rows] != num_tokens:
        raise ValueError(f"offsets[{num_rows}]: expected the number of tokens, {num_tokens}, got {offsets[num_rows]}")
