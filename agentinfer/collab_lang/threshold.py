"""The probability of TRUE under which a step counts as no progress, fitted to how often the large model may be called.

Small models say TRUE too easily: cut at 0.5, hardly a step is ever escalated. The rank of the probabilities still tells
better steps from worse ones, so the threshold is the quantile at which the wished share of steps is escalated.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
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
    """The threshold that escalates the share of `probabilities` nearest to `target_rate`.

    Between two neighbouring samples it takes the middle, so that a rounding of the next ones does not matter. Raises
    ConfigError for fewer than `MIN_SAMPLES` or a rate that is no share.
    """
    if len(probabilities) < MIN_SAMPLES:
        raise ConfigError(
            f"got {len(probabilities)} judged steps, expected at least {MIN_SAMPLES}: judge more sessions"
        )
    if not 0.0 < target_rate < 1.0:
        raise ConfigError(f"target rate: got {target_rate}, expected a share between 0 and 1")
    ordered = sorted(probabilities)
    cuts = [0, *(each for each in range(1, len(ordered)) if ordered[each - 1] < ordered[each])]
    under = min(cuts, key=lambda each: abs(each / len(ordered) - target_rate))
    value = (ordered[under - 1] + ordered[under]) / 2 if under else 0.0
    rate = share_under(ordered, value)
    low, high = _wilson(rate, len(ordered))
    return Threshold(model, check, value, target_rate, rate, low, high, len(ordered))


def share_under(probabilities: Sequence[float], value: float) -> float:
    """The share of steps that a threshold escalates."""
    return sum(each < value for each in probabilities) / len(probabilities)


def write(threshold: Threshold, path: Path) -> None:
    """Writes it whole or not at all."""
    document = {"format": FORMAT, "version": VERSION, **asdict(threshold)}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)


def read(path: Path) -> Threshold:
    """Raises ConfigError naming what is wrong with the file."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: not readable as a threshold ({error}); write one: agentinfer collab calibrate"
        ) from None
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise ConfigError(f"{path}: not a threshold of version {VERSION}; write one: agentinfer collab calibrate")
    try:
        found = Threshold(**{key: value for key, value in document.items() if key not in ("format", "version")})
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(found.value, (int, float)) or not 0.0 <= found.value <= 1.0:
        raise ConfigError(f"{path}: value: got {found.value!r}, expected a probability from 0 to 1")
    return found


def _wilson(rate: float, count: int) -> tuple[float, float]:
    spread = _Z_95 * math.sqrt(rate * (1 - rate) / count + _Z_95**2 / (4 * count**2))
    middle = rate + _Z_95**2 / (2 * count)
    scale = 1 + _Z_95**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
