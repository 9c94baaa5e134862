"""How much of a search is kept, and how much of it a model reads."""

from __future__ import annotations

from dataclasses import dataclass

from agentinfer.compress.search.results import described
from agentinfer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How much is kept. Raises ConfigError for values outside their range.

    `threshold`: share of the best score, 0 keeps all, 1 only the best. `min_keep`: results kept whatever their score
    (as many as there are, and no more than `top_k`). `top_k`: the most that are kept, None for no bound. `max_scored`:
    results that the model judges, the best by words; `max_scored_chars`: of each, what it reads.
    """

    threshold: float = 0.3
    min_keep: int = 3
    top_k: int | None = None
    max_scored: int = 50
    max_scored_chars: int = 600

    def __post_init__(self) -> None:
        if not _is_number(self.threshold) or not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold: expected a number from 0 to 1, got {described(self.threshold)}")
        for name in ("min_keep", "top_k", "max_scored", "max_scored_chars"):
            value = getattr(self, name)
            if value is None and name == "top_k":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected a whole number of at least 1, got {described(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


DEFAULTS = SearchSettings()
