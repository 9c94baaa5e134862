"""The probability of TRUE under which a step counts as no progress, fitted to how often the large model may be called.

Small models say TRUE too easily: cut at 0.5, hardly a step is ever escalated. The rank of the probabilities still tells
better steps from worse ones, so the threshold is the quantile at which the wished share of steps is escalated.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from agentinfer.errors import ConfigError

FORMAT: Final = "agentinfer.collab.threshold"
VERSION: Final = 1
MIN_SAMPLES: Final = 20
_Z_95: Final = 1.96


@dataclass(frozen=True, slots=True)
class Threshold:
    """A fitted threshold: the share of the samples under it, and its 95% interval (Wilson) for steps to come."""

    model: str
    check: str
    value: float
    target_rate: float
    rate: float
    rate_low: float
    rate_high: float
    samples: int


def fit(probabilities: Sequence[float], target_rate: float, model: str, check: str) -> Threshold:
    """The threshold that escalates the share of `probabilities` nearest to `target_rate`; the lower of two as near.

    Between two neighbouring samples it takes the middle, so that a rounding of the next ones does not matter. Equal
    samples fall on one side, so the rate may be far from the target. Raises ConfigError for fewer than `MIN_SAMPLES` or
    a rate that is no share.
    """
    if len(probabilities) < MIN_SAMPLES:
        raise ConfigError(
            f"got {len(probabilities)} judged steps, expected at least {MIN_SAMPLES}: judge more sessions"
        )
    if not 0.0 < target_rate < 1.0:
        raise ConfigError(f"target rate: got {target_rate}, expected a share between 0 and 1")
    # Values between which a threshold can stand. Only one above 1 would escalate a step that is sure of TRUE.
    edges = [0.0, *sorted(probabilities), 1.0]
    cuts = [0, *(each for each in range(1, len(edges) - 1) if edges[each] < edges[each + 1])]
    under = min(cuts, key=lambda each: abs(each / len(probabilities) - target_rate))
    value = _above(edges[under], edges[under + 1]) if under else 0.0
    rate = share_under(probabilities, value)
    low, high = _wilson(rate, len(probabilities))
    return Threshold(model, check, value, target_rate, rate, low, high, len(probabilities))


def share_under(probabilities: Sequence[float], value: float) -> float:
    """The share of steps that a threshold escalates."""
    return sum(each < value for each in probabilities) / len(probabilities)


def write(threshold: Threshold, path: Path) -> None:
    """Writes it whole or not at all. Raises ConfigError where the path cannot be written."""
    document = {"format": FORMAT, "version": VERSION, **asdict(threshold)}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


def read(path: Path) -> Threshold:
    """Raises ConfigError naming what is wrong with the file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        seen = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"{path}: not readable as a threshold ({seen}); write one: agentinfer collab calibrate"
        ) from None
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise ConfigError(f"{path}: not a threshold of version {VERSION}; write one: agentinfer collab calibrate")
    found = {key: value for key, value in document.items() if key not in ("format", "version")}
    if found.keys() != _CHECKS.keys():
        wrong = ", ".join(sorted(found.keys() ^ _CHECKS.keys()))
        raise ConfigError(f"{path}: fields missing or unknown: {wrong}; write one: agentinfer collab calibrate")
    for key, (is_valid, expected) in _CHECKS.items():
        if not is_valid(found[key]):
            raise ConfigError(f"{path}: {key}: got {found[key]!r}, expected {expected}")
    return Threshold(**found)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_CHECKS: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    **dict.fromkeys(("model", "check"), (_is_text, "text")),
    **dict.fromkeys(("value", "target_rate", "rate", "rate_low", "rate_high"), (_is_share, "a share from 0 to 1")),
    "samples": (_is_count, "a whole number"),
}


def _above(low: float, high: float) -> float:
    """The middle, or `high` where no number lies between the two: `low` must be under the threshold."""
    middle = (low + high) / 2
    return middle if middle > low else high


def _wilson(rate: float, count: int) -> tuple[float, float]:
    spread = _Z_95 * math.sqrt(rate * (1 - rate) / count + _Z_95**2 / (4 * count**2))
    middle = rate + _Z_95**2 / (2 * count)
    scale = 1 + _Z_95**2 / count
    # The interval holds the rate; rounding may put a bound of 0 or 1 on its wrong side.
    return max(0.0, min(rate, (middle - spread) / scale)), min(1.0, max(rate, (middle + spread) / scale))
