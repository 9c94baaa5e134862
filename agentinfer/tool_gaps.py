"""How long tools take: seconds between a reply that calls a tool and the session's next turn, by tool.

Deterministic: the same gaps in the same order give the same state, in every process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from agentinfer.gap_histogram import (
    HALF_LIFE_GAPS,
    NUM_BUCKETS,
    SETTLING_SHARE,
    GapHistogram,
    GapSummary,
    dense,
    number_of,
    sparse,
)

SEVERAL_TOOLS: Final = "(several)"
"""Where a reply called several tools, the gap is that of the slowest and is not blamed on one of them."""
OTHER_TOOLS: Final = "(other)"
"""Where gaps of tools go that were forgotten because too many names were seen."""
NO_TOOL: Final = "(no tool)"
"""Where the gap goes after a reply that called none: a person thinks, or the agent's own program works."""

MAX_TOOLS: Final = 64
MAX_NAME_CHARS: Final = 128
KNOWN_GAPS: Final = 8.0
"""A tool with this many gaps counts half as much in the population as one with any number of them."""


@dataclass(frozen=True, slots=True)
class LatestGap:
    """The newest gap of a tool: its length and, where the observer told it, when it ended, in Unix seconds."""

    seconds: float
    at_unix_s: float | None


class ToolGaps:
    """Histograms of the `max_tools` most recently used tools; what is forgotten is merged into `OTHER_TOOLS`.

    `version` grows whenever weights that others derive tables from change, `population_version` when `population` does.
    """

    def __init__(self, max_tools: int = MAX_TOOLS, half_life_gaps: int = HALF_LIFE_GAPS) -> None:
        if max_tools < 1:
            raise ValueError(f"max_tools must be at least 1, got {max_tools}")
        self._max_tools = max_tools
        self._half_life_gaps = half_life_gaps
        self._histograms: OrderedDict[str, GapHistogram] = OrderedDict()  # least recently used first
        self._latest: dict[str, LatestGap] = {}
        self._forgotten = GapHistogram(half_life_gaps)
        self._population: tuple[float, ...] = (0.0,) * (NUM_BUCKETS + 1)
        self._until_population = 1
        self.num_observed = 0
        self.version = 0
        self.population_version = 0

    @property
    def population(self) -> tuple[float, ...]:
        """Weights by bucket of a tool nobody knows: every tool counts 1, one that has few gaps less."""
        return self._population

    def observe(self, tool_names: Sequence[str], seconds: float, at_unix_s: float | None = None) -> str:
        """Add the gap after a reply that called `tool_names`, ended `at_unix_s`; the name it was filed under."""
        name = filed_under(tool_names)
        histogram = self._histogram_of(name)
        before = histogram.version
        histogram.observe(seconds)
        self._latest[name] = LatestGap(max(seconds, 0.0), at_unix_s)
        self._has_changed(name, histogram.version - before)
        return name

    def observe_never(self, tool_names: Sequence[str]) -> str:
        """Add a call of `tool_names` that the session never came back from; the name it was filed under."""
        name = filed_under(tool_names)
        histogram = self._histogram_of(name)
        before = histogram.version
        histogram.observe_never()
        self._has_changed(name, histogram.version - before)
        return name

    def histogram(self, name: str) -> GapHistogram | None:
        """The gaps filed under a name; None for one without. Not to be written to."""
        return self._histograms.get(name)

    def quantile(self, tool_name: str, share: float) -> float | None:
        """See `GapHistogram.quantile`; None for a tool without gaps."""
        histogram = self._histograms.get(tool_name)
        return None if histogram is None else histogram.quantile(share)

    def summaries(self) -> Mapping[str, GapSummary]:
        """A summary for each tool, most gaps first, and one for all that were forgotten."""
        by_count = sorted(self._histograms.items(), key=lambda item: (-item[1].count, item[0]))
        found = {name: histogram.summary() for name, histogram in by_count}
        if self._forgotten.count:
            found[OTHER_TOOLS] = self._forgotten.summary()
        return found

    def latest(self, name: str) -> LatestGap | None:
        """The newest gap filed under a name."""
        return self._latest.get(name)

    def state(self) -> dict[str, Any]:
        """All there is to it, as a JSON object; a copy made of it predicts the same for ever."""
        tools = []
        for name, histogram in self._histograms.items():
            latest = self._latest.get(name)
            tools.append(
                {
                    "name": name,
                    **histogram.state(),
                    "latest": None if latest is None else [latest.seconds, latest.at_unix_s],
                }
            )
        return {
            "half_life_gaps": self._half_life_gaps,
            "num_observed": self.num_observed,
            "until_population": self._until_population,
            "population": sparse(self._population),
            "forgotten": self._forgotten.state(),
            "tools": tools,
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], max_tools: int = MAX_TOOLS, half_life_gaps: int = HALF_LIFE_GAPS
    ) -> Self:
        """The inverse of `state`. Raises ValueError naming what is wrong."""
        made = cls(max_tools, half_life_gaps)
        if state.get("half_life_gaps") != half_life_gaps:
            raise ValueError(f"half_life_gaps: expected {half_life_gaps}, got {state.get('half_life_gaps')!r:.80}")
        try:
            made._restore(state)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        return made

    def _restore(self, state: Mapping[str, Any]) -> None:
        tools = state["tools"]
        if len(tools) > self._max_tools:
            raise ValueError(f"tools: expected at most {self._max_tools}, got {len(tools)}")
        for tool in tools:
            name, latest = tool["name"], tool["latest"]
            if not isinstance(name, str) or name != _shortened(name) or name in self._histograms:
                raise ValueError(
                    f"tools: expected distinct names of at most {MAX_NAME_CHARS} characters, got {name!r:.80}"
                )
            self._histograms[name] = GapHistogram.from_state(tool, self._half_life_gaps)
            if latest is not None:
                seconds, at_unix_s = latest
                self._latest[name] = LatestGap(float(seconds), None if at_unix_s is None else float(at_unix_s))
        self._forgotten = GapHistogram.from_state(state["forgotten"], self._half_life_gaps)
        self._population = tuple(dense(state, "population", at_most=self._max_tools + 2))
        most_gaps = 4 * self._half_life_gaps * (self._max_tools + 1)
        self._until_population = int(number_of(state, "until_population", below=most_gaps))
        self.num_observed = int(number_of(state, "num_observed"))
        self.version = self.population_version = 1

    def _histogram_of(self, name: str) -> GapHistogram:
        histogram = self._histograms.get(name)
        if histogram is None:
            histogram = self._histograms[name] = GapHistogram(self._half_life_gaps)
            # Above every version that a forgotten histogram of this name had.
            histogram.version = self.version
        self._histograms.move_to_end(name)
        while len(self._histograms) > self._max_tools:
            forgotten_name, forgotten = self._histograms.popitem(last=False)
            self._latest.pop(forgotten_name, None)
            self._forgotten.merge(forgotten)
            self.version += 1
        return histogram

    def _has_changed(self, name: str, num_settled: int) -> None:
        self.num_observed += 1
        self.version += num_settled
        if name != NO_TOOL:
            self._until_population -= 1
            if self._until_population <= 0:
                self._survey()

    def _survey(self) -> None:
        """Derive the population anew; again when there are a sixteenth more gaps."""
        population, num_gaps = [0.0] * (NUM_BUCKETS + 1), 0.0
        for name in sorted(self._histograms):
            if name != NO_TOOL:
                num_gaps += _add_as_one_tool(population, self._histograms[name])
        num_gaps += _add_as_one_tool(population, self._forgotten)
        self._population = tuple(population)
        self._until_population = max(1, int(num_gaps) // SETTLING_SHARE)
        self.population_version += 1
        self.version += 1


def filed_under(tool_names: Sequence[str]) -> str:
    """The name that the gap after a reply with these calls is filed under."""
    distinct = dict.fromkeys(tool_names)
    if not distinct:
        return NO_TOOL
    return _shortened(next(iter(distinct))) if len(distinct) == 1 else SEVERAL_TOOLS


def _shortened(name: str) -> str:
    """Short enough to keep, and text that can be written: a lone surrogate cannot."""
    return name[:MAX_NAME_CHARS].encode(errors="replace").decode()


def _add_as_one_tool(population: list[float], histogram: GapHistogram) -> float:
    """Add a tool to the population; its number of gaps."""
    num_gaps = sum(histogram.weights)
    for bucket, weight in enumerate(histogram.weights):
        population[bucket] += weight / (num_gaps + KNOWN_GAPS)
    return num_gaps
