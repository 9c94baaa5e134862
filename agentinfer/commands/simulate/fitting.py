"""Engine costs from measured times: least squares of relative errors, with no cost below zero."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from agentinfer.errors import AgentInferError
from agentinfer.radix_ext.simulator import EngineCosts

_Floats = NDArray[np.float64]

# Beyond this, half of what was measured, the times do not follow the model at all.
_LARGEST_MEAN_ERROR = 0.5


class CalibrationError(AgentInferError):
    """A server that cannot be measured, or times that no engine's costs explain."""


@dataclass(frozen=True, slots=True)
class PrefillSample:
    """One request alone, from sending it to its first token."""

    prompt_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DecodeSample:
    """A step of `sequences` with contexts of `context_tokens` that decode together.

    `kv_tokens` is what they attended to, on average over the steps.
    """

    sequences: int
    context_tokens: int
    kv_tokens: float
    seconds: float


@dataclass(frozen=True, slots=True)
class FitError:
    """|predicted - measured| / measured."""

    mean: float
    largest: float


@dataclass(frozen=True, slots=True)
class Fit:
    costs: EngineCosts
    prefill: FitError
    decode: FitError


def fit(base: EngineCosts, prefill: Sequence[PrefillSample], decode: Sequence[DecodeSample]) -> Fit:
    """`base` with the measured costs in place of its own. Raises CalibrationError where the times make no sense.

    Of several samples of one point the shortest counts: what else the machine does can only add to it.
    """
    times = [sample.seconds for sample in prefill] + [sample.seconds for sample in decode]
    if not all(0 < seconds < float("inf") for seconds in times):
        raise CalibrationError(f"measured times from {min(times)} to {max(times)} s: expected times above 0")
    if len({sample.prompt_tokens for sample in prefill}) < 2 or len({sample.sequences for sample in decode}) < 2:
        raise CalibrationError("expected prompts of two lengths and batches of two sizes at least to fit costs to")
    prefill = _shortest(prefill, lambda sample: sample.prompt_tokens)
    decode = _shortest(decode, lambda sample: (sample.sequences, sample.context_tokens))
    lengths = np.array([sample.prompt_tokens for sample in prefill], float)
    columns = np.stack([np.ones_like(lengths), lengths, lengths * lengths / 2], axis=1)
    (request_s, token_s, attention_s), prefill_error = _solved(columns, [sample.seconds for sample in prefill])
    counts = np.array([sample.sequences for sample in decode], float)
    attended = np.array([sample.kv_tokens for sample in decode], float)
    columns = np.stack([np.ones_like(counts), counts, attended], axis=1)
    (step_s, sequence_s, kv_token_s), decode_error = _solved(columns, [sample.seconds for sample in decode])
    if token_s <= 0:
        raise CalibrationError(
            f"prompts of {lengths.min():.0f} to {lengths.max():.0f} tokens took {_range(prefill)}, which does not grow "
            "with their length; is the server busy, or does it have these prompts cached? Measure an idle one"
        )
    for name, error in (("prefill", prefill_error), ("decode", decode_error)):
        if error.mean > _LARGEST_MEAN_ERROR:
            raise CalibrationError(
                f"{name} times are {error.mean:.0%} off any engine's costs on average; is the server or its machine "
                "busy? Measure an idle one"
            )
    costs = replace(
        base,
        step_s=step_s,
        sequence_s=sequence_s,
        kv_token_s=kv_token_s,
        prefill_tokens_per_s=1.0 / token_s,
        request_s=request_s,
        attention_s=attention_s,
    )
    return Fit(costs, prefill_error, decode_error)


_Sample = TypeVar("_Sample", PrefillSample, DecodeSample)


def _shortest(samples: Sequence[_Sample], point: Callable[[_Sample], Hashable]) -> list[_Sample]:
    """Of each point the sample of the shortest time."""
    best: dict[Hashable, _Sample] = {}
    for sample in samples:
        known = best.setdefault(point(sample), sample)
        if sample.seconds < known.seconds:
            best[point(sample)] = sample
    return list(best.values())


def _solved(columns: _Floats, seconds: Sequence[float]) -> tuple[list[float], FitError]:
    """Non-negative factors of the columns: the best of all choices of columns whose plain least squares are that.

    Rows are divided by what was measured, so that short times count as much as long ones.
    """
    measured = np.array(seconds)
    rows = columns / measured[:, None]
    best: tuple[float, _Floats] | None = None
    indices = range(columns.shape[1])
    for chosen in (list(c) for size in indices for c in combinations(indices, size + 1)):
        factors = np.zeros(columns.shape[1])
        factors[chosen] = np.linalg.lstsq(rows[:, chosen], np.ones_like(measured), rcond=None)[0]
        squares = float(np.square(rows @ factors - 1.0).sum())
        if (factors >= 0).all() and (best is None or squares < best[0] - 1e-12):
            best = squares, factors
    assert best is not None, "a single column of positive numbers always has a positive factor"
    errors = np.abs(rows @ best[1] - 1.0)
    return best[1].tolist(), FitError(float(errors.mean()), float(errors.max()))


def _range(samples: Sequence[PrefillSample]) -> str:
    times = [sample.seconds for sample in samples]
    return f"{min(times):.3g} to {max(times):.3g} s"
