"""What is known about when a waiting session comes back: learned by tool, shared between tools, told by clients.

A tool's own gaps are blended with the population of all tools, which counts like `KNOWN_GAPS` of its own; the
population is blended with a broad prior, which counts like one tool. So every question has an answer from the first
moment, and a tool called twice is not taken to always take as long as those two calls.

What it predicts is a function of the state of its `ToolGaps` alone: the same on every machine that saw the same gaps,
and the same after they were saved and loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agentinfer.gap_histogram import NUM_BUCKETS, SHORTEST_S, UPPER_EDGES_S, GapHistogram, bucket_of
from agentinfer.radix_ext.gap_distribution import Floats, GapDistribution, around, broad_prior, slowest_of
from agentinfer.tool_gaps import KNOWN_GAPS, MAX_TOOLS, NO_TOOL, SEVERAL_TOOLS, ToolGaps, filed_under

MAX_INDICES: Final = 16 * MAX_TOOLS
_FIRST_ROWS: Final = 64
HINT_TRUST: Final = 0.8
"""The chance that a client's word on its tools is right within a factor of two."""
HABIT_TRUST: Final = 0.5
"""The chance that a session is away for about as long as it usually is, within a factor of four. On recorded coding
agents that is worth 0.4 bits of log-likelihood a pause of people, and less than nothing for tools."""
_NEWS_SHARE: Final = 0.3

_Key = tuple[tuple[str, ...], int | None]  # the distinct tools in order, the bucket of the expected seconds
_Stamp = tuple[int, ...]

_BROAD: Final = broad_prior()
_INNER_EDGES_S: Final[Floats] = np.array(UPPER_EDGES_S[:-1])  # beyond the last of them lies the last bucket


class ToolLatency:
    """Predictions over `gaps`, which it owns; the caller feeds it by `observe` and `observe_never`. Not thread-safe."""

    def __init__(self, gaps: ToolGaps | None = None, max_indices: int = MAX_INDICES) -> None:
        """`max_indices`: how many different calls are known at once; more than those of sessions away at one time."""
        self.gaps = ToolGaps() if gaps is None else gaps
        self._max_indices = max_indices
        self._indices: dict[_Key, int] = {}  # least recently asked for first
        self._rates: Floats = np.zeros((_FIRST_ROWS, NUM_BUCKETS))
        self._stamps: list[_Stamp | None] = []
        self._keys: list[_Key] = []
        self._is_fresh = np.zeros(_FIRST_ROWS, dtype=bool)
        self._fresh_as_of = -1

    def observe(self, tools: Sequence[str], seconds: float, at_unix_s: float | None = None) -> None:
        """The session is back after `seconds` in `tools`; none of them where the reply called no tool."""
        self.gaps.observe(tools, seconds, at_unix_s)

    def observe_never(self, tools: Sequence[str]) -> None:
        """The session ended while it was in `tools`."""
        self.gaps.observe_never(tools)

    def distribution(self, tools: Sequence[str], expected_s: float | None = None) -> GapDistribution:
        """What is believed of the gap after a reply with these calls, before any of it has passed.

        `expected_s` is what a client said of its tools, believed with chance `HINT_TRUST`: once twice that was waited,
        only what was learned is left of the mixture. Where no tool was called it is how long this session was usually
        away so far (`usual_s`), believed with chance `HABIT_TRUST`: people differ more than tools do.
        """
        return self._distribution(_key(tools, expected_s))

    def survival(self, tools: Sequence[str], waited_s: float) -> float:
        """P(the session is not back after `waited_s`)."""
        return self.distribution(tools).exceeds(waited_s)

    def return_rate(self, tools: Sequence[str], waited_s: float, expected_s: float | None = None) -> float:
        """Returns per second, at the horizon at which they are most: `GapDistribution.return_rates`."""
        index = self.index_of(tools, expected_s)
        self._outdate()
        if not self._is_fresh[index]:
            self._refresh(index)
        return float(self._rates[index, bucket_of(waited_s)])

    def index_of(self, tools: Sequence[str], expected_s: float | None = None) -> int:
        """What `return_rates` knows these calls by; ask anew at each call.

        It stands until `max_indices` others were asked for. Then others get it, and whoever kept it gets their rate.
        """
        key = _key(tools, expected_s)
        index = self._indices.pop(key, None)
        if index is None:
            index = self._new_index(key)
        self._indices[key] = index
        return index

    def return_rates(self, indices: NDArray[np.integer], waited_s: Floats) -> Floats:
        """`return_rate` of many sessions at once; `indices` from `index_of`."""
        self._outdate()
        if not self._is_fresh[indices].all():
            for index in np.unique(indices):
                self._refresh(int(index))
        buckets = _INNER_EDGES_S.searchsorted(waited_s)
        found: Floats = self._rates.ravel().take(indices * NUM_BUCKETS + buckets)
        return found

    def check_integrity(self) -> None:
        """Recomputes every row that counts as up to date; raises AssertionError naming what is not."""
        self._outdate()
        assert sorted(self._indices.values()) == list(range(len(self._keys))), "an index is lost or stands twice"
        for key, index in self._indices.items():
            assert self._keys[index] == key, f"index {index} stands for {self._keys[index]}, expected {key}"
            if self._is_fresh[index] or self._stamps[index] == self._stamp(key[0]):
                rates = self._distribution(key).return_rates()
                assert np.array_equal(self._rates[index], rates), f"the rates of {key} are out of date"

    def _new_index(self, key: _Key) -> int:
        if len(self._keys) < self._max_indices:
            index = len(self._keys)
            self._keys.append(key)
            self._stamps.append(None)
            if index == len(self._rates):
                self._rates = np.concatenate((self._rates, np.zeros_like(self._rates)))
                self._is_fresh = np.concatenate((self._is_fresh, np.zeros_like(self._is_fresh)))
        else:
            index = self._indices.pop(next(iter(self._indices)))
            self._keys[index] = key
            self._stamps[index] = None
        self._is_fresh[index] = False
        return index

    def _outdate(self) -> None:
        """Every row has to be looked at again once any weights have changed."""
        if self._fresh_as_of != self.gaps.version:
            self._is_fresh[:] = False
            self._fresh_as_of = self.gaps.version

    def _refresh(self, index: int) -> None:
        """Brings a row of rates up to date; without work where nothing it derives from has changed."""
        key = self._keys[index]
        stamp = self._stamp(key[0])
        if stamp != self._stamps[index]:
            self._rates[index] = self._distribution(key).return_rates()
            self._stamps[index] = stamp
        self._is_fresh[index] = True

    def _stamp(self, tools: tuple[str, ...]) -> _Stamp:
        """The versions of all that a row derives from."""
        if not tools:
            return (self._version(NO_TOOL),)
        names = tools if len(tools) == 1 else (*tools, SEVERAL_TOOLS)
        return (self.gaps.population_version, *map(self._version, names))

    def _version(self, name: str) -> int:
        histogram = self.gaps.histogram(name)
        return -1 if histogram is None else histogram.version

    def _distribution(self, key: _Key) -> GapDistribution:
        tools, expected_bucket = key
        if not tools:
            learned = _blended(self.gaps.histogram(NO_TOOL), _BROAD)
        elif len(tools) == 1:
            learned = self._of_one(tools[0])
        else:
            together = slowest_of([GapDistribution.of(self._of_one(tool)) for tool in tools])
            learned = _blended(self.gaps.histogram(SEVERAL_TOOLS), together)
        if expected_bucket is None:
            return GapDistribution.of(learned)
        trust, doublings = (HINT_TRUST, 1) if tools else (HABIT_TRUST, 2)
        return GapDistribution.of(trust * around(expected_bucket, doublings) + (1 - trust) * learned / learned.sum())

    def _of_one(self, tool: str) -> Floats:
        population = np.array(self.gaps.population) + _BROAD
        return _blended(self.gaps.histogram(tool), population / population.sum())


def usual_s(before_s: float | None, seconds: float) -> float:
    """A running geometric mean of a session's pauses, the newest included; `before_s` is None at its first."""
    seconds = max(seconds, SHORTEST_S)
    return seconds if before_s is None else before_s ** (1 - _NEWS_SHARE) * seconds**_NEWS_SHARE


def _key(tools: Sequence[str], expected_s: float | None) -> _Key:
    return _distinct(tuple(tools)), None if expected_s is None else bucket_of(expected_s)


@functools.lru_cache(maxsize=MAX_INDICES)
def _distinct(tools: tuple[str, ...]) -> tuple[str, ...]:
    """The names they are filed under, in order."""
    return tuple(sorted({filed_under((tool,)) for tool in tools}))


def _blended(histogram: GapHistogram | None, beliefs: Floats) -> Floats:
    """Weights of a tool that is believed to be like `beliefs`, of sum 1, and was seen to be like `histogram`."""
    believed = KNOWN_GAPS * beliefs
    return believed if histogram is None else believed + np.array(histogram.weights)
