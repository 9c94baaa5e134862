"""What width control costs and what it gains: microseconds a call, and seconds of simulated engines beside an oracle.

    python -m benchmarks.width [--repeat N] [--tokens N] [--json OUT]

The engines are formulas of step time, so the simulated figures are counted and the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agentinfer.spec_sam.width import DEFAULT_WIDTHS, WidthController
from benchmarks.automaton import machine

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Engine:
    """Milliseconds of a step, by what it does, and what the clock shows of it."""

    base: float = 25.0
    row: float = 2.1  # beyond the first; a step of 8 rows takes 1.6 of one, as measured on a 2-core CPU
    tile: int = 1  # rows are computed in multiples of this
    verify: float = 0.5  # where width > 1
    request: float = 0.1
    context: float = 1e-4  # a token read
    draft: float = 0.1  # a request drafted for
    noise: float = 0.0  # standard deviation of the logarithm
    outliers: float = 0.0  # share of steps that the clock shows ten times as long
    drift: Callable[[float], float] = lambda progress: 1.0  # factor on everything, by share of the text done

    def step_s(self, batch_size: int, width: int, context_tokens: float, progress: float) -> float:
        rows = math.ceil(batch_size * width / self.tile) * self.tile - self.tile
        work = self.base + self.row * rows + self.verify * (width > 1) + self.request * batch_size
        return (work + self.context * context_tokens) * self.drift(progress) / 1e3


def _surges(progress: float) -> float:
    return 3.0 if 0.3 < progress < 0.6 else 1.0 + progress


ENGINES = {
    "cpu": Engine(),
    "gpu": Engine(base=9.0, row=0.01, verify=0.3, request=0.06, context=5.5e-5, draft=0.003),
    "tiles of 8": Engine(base=10.0, row=0.75, tile=8, draft=0.02),
    "rows dear": Engine(row=15.0),
    "noisy": Engine(noise=0.1, outliers=0.03),
    "drifting": Engine(noise=0.03, drift=_surges),
    "drafts dear": Engine(draft=6.0),
}


@dataclass(frozen=True)
class Text:
    """What each request will say: a draft made at token i matches from there on with chances[request, i], ..."""

    chances: Floats  # what the drafter states, [requests, tokens]
    matches: npt.NDArray[np.bool_]
    context_lens: npt.NDArray[np.int64]  # before the first token

    @property
    def num_requests(self) -> int:
        return len(self.chances)


def repeating_text(
    requests: int, tokens: int, *, repeats: float | Sequence[float] = 0.4, overconfidence: float = 1.0, seed: int = 0
) -> Text:
    """Spans that repeat earlier ones among spans that do not, each some 20 tokens long on average. `repeats` is the
    share of the former, or several, for equal parts of the text. True chances are the stated ones to the power of
    `overconfidence`."""
    rng = np.random.default_rng(seed)
    shares = [repeats] if isinstance(repeats, float) else list(repeats)
    chances = np.zeros((requests, tokens + 64))
    for row in chances:
        position = 0
        while position < len(row):
            share = shares[min(position * len(shares) // tokens, len(shares) - 1)]
            end = position + 1 + int(rng.geometric(1 / 20))
            is_repeated = rng.random() < share
            row[position:end] = rng.uniform(0.8, 0.99) if is_repeated else rng.choice([0.0, 0.1, 0.3])
            position = end
    matches = rng.random(chances.shape) < chances**overconfidence
    return Text(chances, matches, rng.integers(200, 6000, requests))


@dataclass(frozen=True)
class Outcome:
    seconds: float
    tokens: int
    steps: int
    verified: int
    seconds_drafting: float
    widths: dict[int, int]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class FixedWidth:
    """Always the same width."""

    def __init__(self, width: int) -> None:
        self.width = width

    def drafts(self, batch_size: int) -> bool:
        return self.width > 1

    def choose(self, paths: npt.NDArray[np.float32], context_lens: npt.NDArray[np.int64], progress: float) -> int:
        return self.width


class Oracle:
    """Knows the engine and the true chances. `worth` is what a plain step's time is worth, in plain steps' tokens; None
    takes the width of the most tokens a second of each step alone."""

    def __init__(self, engine: Engine, worth: float | None, power: float = 1.0) -> None:
        self.engine, self.worth, self.power = engine, worth, power

    def drafts(self, batch_size: int) -> bool:
        return True

    def choose(self, paths: npt.NDArray[np.float32], context_lens: npt.NDArray[np.int64], progress: float) -> int:
        batch_size = len(paths)
        expected = batch_size + np.append(0.0, np.cumsum((paths[:, 1:] ** self.power).sum(0)))
        context = float(context_lens.sum())
        times = {width: self.engine.step_s(batch_size, width, context, progress) for width in DEFAULT_WIDTHS}
        if self.worth is None:
            return max(times, key=lambda width: expected[width - 1] / times[width])
        rate = self.worth * batch_size / times[1]
        return max(times, key=lambda width: expected[width - 1] - rate * times[width])


class Controlled:
    """The controller, fed by the simulated clock."""

    def __init__(self, controller: WidthController | None = None) -> None:
        self.controller = controller or WidthController()

    def drafts(self, batch_size: int) -> bool:
        return self.controller.should_draft(batch_size)

    def choose(self, paths: npt.NDArray[np.float32], context_lens: npt.NDArray[np.int64], progress: float) -> int:
        return self.controller.choose(paths, context_lens)


def simulate(engine: Engine, text: Text, policy: FixedWidth | Oracle | Controlled, *, seed: int = 1) -> Outcome:
    """Runs all requests side by side until together they have said all but the last tokens of the text. Every policy
    meets the same text. Seconds are the engine's true ones; the clock that the controller sees adds noise."""
    rng = np.random.default_rng(seed)
    n = text.num_requests
    rows = np.arange(n)
    length = text.chances.shape[1] - 64
    max_width = DEFAULT_WIDTHS[-1]
    position = np.zeros(n, np.int64)
    seconds = drafting = 0.0
    steps = verified = 0
    widths: dict[int, int] = dict.fromkeys(DEFAULT_WIDTHS, 0)
    while position.sum() < n * length:
        progress = float(position.sum()) / (n * length)
        where = np.minimum(position, length - 1)[:, None] + np.arange(max_width - 1)
        width = 1
        context_lens = text.context_lens + position
        controller = policy.controller if isinstance(policy, Controlled) else None
        if policy.drafts(n):
            cost = engine.draft * n * engine.drift(progress) / 1e3
            drafting += cost
            if controller is not None:
                controller.observe_draft(n, cost)
            paths = np.ones((n, max_width), np.float32)
            np.cumprod(text.chances[rows[:, None], where], axis=1, out=paths[:, 1:])
            paths[paths < 0.01] = 0.0
            width = policy.choose(paths, context_lens, progress)
        leading = np.cumprod(text.matches[rows[:, None], where[:, : width - 1]], axis=1)
        gained = 1 + leading.sum(1)
        true_s = engine.step_s(n, width, float(context_lens.sum()), progress)
        seen_s = true_s * math.exp(engine.noise * rng.standard_normal())
        seen_s *= 10.0 if rng.random() < engine.outliers else 1.0
        if controller is not None:
            controller.observe(n, width, int(context_lens.sum()), seen_s, int(gained.sum()))
            if width > 1:
                controller.observe_acceptance(paths[:, :width], np.arange(width) < gained[:, None])
        position += gained
        seconds += true_s
        steps += 1
        verified += width * n
        widths[width] += 1
    return Outcome(seconds + drafting, int(position.sum()), steps, verified, drafting, widths)


def oracle(engine: Engine, text: Text, power: float = 1.0) -> Outcome:
    """The best of an oracle's rates and of plain decoding: what no online policy can know."""
    runs = [simulate(engine, text, Oracle(engine, worth, power)) for worth in (None, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0)]
    return max([*runs, simulate(engine, text, FixedWidth(1))], key=lambda run: run.tokens_per_second)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.width", description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=200, help="times that each call is measured (default 200)")
    parser.add_argument("--tokens", type=int, default=1500, help="a request says in a simulation (default 1500)")
    parser.add_argument("--seeds", type=int, default=3, help="texts of each kind (default 3)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/width.json"))
    args = parser.parse_args(argv)

    calls = [measure_calls(batch_size, args.repeat) for batch_size in (1, 4, 16)]
    for row in calls:
        print(json.dumps(row))
    simulated = []
    for name in ENGINES:
        for requests in (1, 4, 16):
            for kind in TEXTS:
                simulated.append(compare(name, requests, kind, args.tokens, range(args.seeds)))
                print(json.dumps(simulated[-1]), flush=True)
    result = {
        "benchmark": "width",
        "command": shlex.join(["python", "-m", "benchmarks.width", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine(),
        "widths": list(DEFAULT_WIDTHS),
        "calls": calls,
        "simulated": simulated,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure_calls(batch_size: int, repeat: int) -> dict[str, Any]:
    """Microseconds of each call in its steady state: the median and the least of `repeat` measurements."""
    rng = np.random.default_rng(0)
    controller = WidthController()
    paths = np.sort(rng.random((batch_size, DEFAULT_WIDTHS[-1])).astype(np.float32))[:, ::-1].copy()
    paths[:, 0] = 1.0
    context_lens = np.full(batch_size, 3000, np.int64)
    for number in range(201):
        width = DEFAULT_WIDTHS[number % len(DEFAULT_WIDTHS)]
        controller.observe(batch_size, width, 3000 * batch_size, 0.02 + 0.001 * width, 2 * batch_size)
    accepted = rng.random((batch_size, 8)) < paths[:, :8]

    row: dict[str, Any] = {"batch_size": batch_size}
    for name, call in {
        "choose": lambda: controller.choose(paths, context_lens),
        "should_draft": lambda: controller.should_draft(batch_size),
        "observe_draft": lambda: controller.observe_draft(batch_size, 1e-4),
        "observe_acceptance": lambda: controller.observe_acceptance(paths[:, :8], accepted),
        "observe": lambda: controller.observe(batch_size, 8, 3000 * batch_size, 0.028, 2 * batch_size),
    }.items():
        samples = [1e6 * seconds / 200 for seconds in timeit.repeat(call, number=200, repeat=repeat)]
        row[f"{name}_us"] = {"median": round(statistics.median(samples), 2), "least": round(min(samples), 2)}
    return row


# Arguments of `repeating_text`. "never" has weak drafts that come true as often as they say; those of "wrong" never do.
TEXTS: dict[str, dict[str, Any]] = {
    "often": {"repeats": 0.4},
    "rarely": {"repeats": 0.1},
    "overconfident": {"repeats": 0.4, "overconfidence": 4.0},
    "late": {"repeats": [0.0, 0.0, 0.7]},
    "never": {"repeats": 0.0},
    "wrong": {"repeats": 0.3},
}


def compare(name: str, requests: int, kind: str, tokens: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Tokens a second over those of plain decoding: the controller, an oracle and fixed widths, one value a seed."""
    engine = ENGINES[name]
    row: dict[str, Any] = {"engine": name, "requests": requests, "text": kind}
    speedups: dict[str, list[float]] = {key: [] for key in ("controller", "oracle", "fixed_4", "fixed_8", "fixed_16")}
    for seed in seeds:
        text = repeating_text(requests, tokens, seed=100 + seed, **TEXTS[kind])
        if kind == "wrong":
            text = replace(text, matches=np.zeros_like(text.matches))
        plain = simulate(engine, text, FixedWidth(1))
        runs = {
            "controller": simulate(engine, text, Controlled(), seed=seed),
            "oracle": plain if kind == "wrong" else oracle(engine, text, TEXTS[kind].get("overconfidence", 1.0)),
            **{f"fixed_{width}": simulate(engine, text, FixedWidth(width)) for width in (4, 8, 16)},
        }
        for key, run in runs.items():
            speedups[key].append(round(run.tokens_per_second / plain.tokens_per_second, 4))
    return row | speedups


if __name__ == "__main__":
    sys.exit(main())
