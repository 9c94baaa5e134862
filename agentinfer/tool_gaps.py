"""How long tools take: seconds between a reply that calls a tool and the session's next turn, by tool.

Each tool has a histogram over logarithmic buckets, so memory is fixed and a quantile is at most one bucket's width off
(a factor of 2 ** (1/4), 19%).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

SEVERAL_TOOLS: Final = "(several)"
"""Where a reply called several tools, the gap is that of the slowest and is not blamed on one of them."""
OTHER_TOOLS: Final = "(other)"
"""Where gaps of tools go that were forgotten because too many names were seen."""

SHORTEST_S: Final = 1e-3
BUCKETS_A_DOUBLING: Final = 4
NUM_BUCKETS: Final = 4 * 30  # up to 1e-3 s * 2 ** 30: twelve days


@dataclass(frozen=True, slots=True)
class GapSummary:
    """The gaps of one tool, in seconds."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float

    def as_dict(self) -> dict[str, float]:
        """The summary as a JSON object."""
        return {
            "count": self.count,
            "mean_s": round(self.mean_s, 3),
            "p50_s": round(self.p50_s, 3),
            "p90_s": round(self.p90_s, 3),
            "p99_s": round(self.p99_s, 3),
            "max_s": round(self.max_s, 3),
        }


class GapHistogram:
    """Counts of gaps in buckets that grow by 2 ** (1 / `BUCKETS_A_DOUBLING`) from `SHORTEST_S`."""

    __slots__ = ("_counts", "count", "max_s", "total_s")

    def __init__(self) -> None:
        self._counts = [0] * NUM_BUCKETS
        self.count = 0
        self.total_s = 0.0
        self.max_s = 0.0

    def observe(self, seconds: float) -> None:
        """Add one gap; a negative one, which a stepped clock can give, counts as zero."""
        seconds = max(seconds, 0.0)
        self._counts[_bucket(seconds)] += 1
        self.count += 1
        self.total_s += seconds
        self.max_s = max(self.max_s, seconds)

    def merge(self, other: GapHistogram) -> None:
        """Add all gaps of another histogram."""
        self._counts = [mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.total_s += other.total_s
        self.max_s = max(self.max_s, other.max_s)

    def quantile(self, share: float) -> float | None:
        """The gap that `share` of all gaps do not exceed; None before the first gap.

        The answer is the upper edge of a bucket, or the longest gap where that is shorter.
        """
        if not self.count:
            return None
        wanted = max(1, math.ceil(share * self.count))
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                # The last bucket has no upper edge.
                return self.max_s if bucket == NUM_BUCKETS - 1 else min(_upper_edge_s(bucket), self.max_s)
        raise AssertionError(f"GapHistogram: buckets hold {seen} gaps, counted {self.count}")

    def summary(self) -> GapSummary:
        """Count, mean and quantiles; all zero before the first gap."""
        p50_s, p90_s, p99_s = (self.quantile(share) or 0.0 for share in (0.5, 0.9, 0.99))
        mean_s = self.total_s / self.count if self.count else 0.0
        return GapSummary(self.count, mean_s, p50_s, p90_s, p99_s, self.max_s)


class ToolGaps:
    """Histograms of the `max_tools` most recently used tools; what is forgotten is merged into `OTHER_TOOLS`."""

    def __init__(self, max_tools: int = 64) -> None:
        if max_tools < 1:
            raise ValueError(f"max_tools must be at least 1, got {max_tools}")
        self._max_tools = max_tools
        self._histograms: OrderedDict[str, GapHistogram] = OrderedDict()  # least recently used first
        self._forgotten = GapHistogram()

    def observe(self, tool_names: Sequence[str], seconds: float) -> str | None:
        """Add the gap after a reply that called `tool_names`; the name it was filed under, None without a tool."""
        distinct = dict.fromkeys(tool_names)
        if not distinct:
            return None
        name = next(iter(distinct)) if len(distinct) == 1 else SEVERAL_TOOLS
        histogram = self._histograms.get(name)
        if histogram is None:
            histogram = self._histograms[name] = GapHistogram()
        histogram.observe(seconds)
        self._histograms.move_to_end(name)
        while len(self._histograms) > self._max_tools:
            _, forgotten = self._histograms.popitem(last=False)
            self._forgotten.merge(forgotten)
        return name

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


def _bucket(seconds: float) -> int:
    if seconds <= SHORTEST_S:
        return 0
    return min(NUM_BUCKETS - 1, math.ceil(BUCKETS_A_DOUBLING * math.log2(seconds / SHORTEST_S)))


def _upper_edge_s(bucket: int) -> float:
    return float(SHORTEST_S * 2.0 ** (bucket / BUCKETS_A_DOUBLING))
