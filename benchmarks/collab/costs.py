"""Seconds a token on the engines that the benchmark runs, one request at a time: to prefill one, and to decode one."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agentinfer.collab_lang.controller import Model
from benchmarks.collab.engine import Engine

_SHORT, _LONG, _DECODED = 32, 544, 32
# Ids that both vocabularies have and that stand for text.
_IDS: Final = range(1000, 40_000)


@dataclass(frozen=True, slots=True)
class Costs:
    """Medians, with the samples."""

    prefill_s: float
    decode_s: float
    prefill_samples: tuple[float, ...]
    decode_samples: tuple[float, ...]


async def measure(engines: Mapping[Model, Engine], repeats: int, seed: int) -> dict[Model, Costs]:
    """The engines in turn, so that what else the machine does slows both alike. Prompts are random, so none is cached.

    A prefill is the difference of a long and a short prompt, decoding that of many tokens and one.
    """
    rng = random.Random(seed)
    prefill: dict[Model, list[float]] = {model: [] for model in Model}
    decode: dict[Model, list[float]] = {model: [] for model in Model}
    for repeat in range(repeats + 1):
        for model, engine in engines.items():
            short = await _timed(engine, rng, _SHORT, 1)
            long = await _timed(engine, rng, _LONG, 1)
            spoken = await _timed(engine, rng, _SHORT, 1 + _DECODED)
            if repeat:  # the first warms up
                prefill[model].append((long - short) / (_LONG - _SHORT))
                decode[model].append((spoken - short) / _DECODED)
    return {
        model: Costs(
            statistics.median(prefill[model]),
            statistics.median(decode[model]),
            tuple(round(each, 6) for each in prefill[model]),
            tuple(round(each, 6) for each in decode[model]),
        )
        for model in engines
    }


async def _timed(engine: Engine, rng: random.Random, prompt_tokens: int, new_tokens: int) -> float:
    prompt = rng.choices(_IDS, k=prompt_tokens)
    started_s = time.perf_counter()
    await engine.generate(prompt, new_tokens)
    return time.perf_counter() - started_s
