"""How many nodes of each draft a step verifies: one width for the batch, chosen by what the whole run gains from it.

The best width is not the one with the most tokens per second of this step. Over a run, a second is worth the tokens
that it yields elsewhere, so a step takes the width with the highest

    expected tokens - tokens a second of the run x seconds of the step

(the optimality condition of a ratio of sums: Dinkelbach, "On nonlinear fractional programming", 1967). Where drafts are
poor, a plain step hurries on to better text; where they are good, more of them is verified. Both rates are measured in
plain steps of the batch at hand, so that a machine that gets slower as a whole changes nothing.

What is not tried is not learned, so a fixed share of the time (`probe_budget`) goes into steps that look unprofitable:
widths not measured lately, and drafts whose like were refused before. Drafting itself, where it does not pay, is paid
from the same budget. That bounds what speculation can cost on text that never repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from agentinfer.errors import ConfigError
from agentinfer.spec_sam.acceptance import AcceptanceModel
from agentinfer.spec_sam.step_time import StepTimeModel

Floats = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.float32]

DEFAULT_WIDTHS: Final = (1, 2, 3, 4, 6, 8, 12, 16)

_SPEEDUP_FORGETTING: Final = 0.995  # per step
_GAIN_RATE: Final = 0.05
_DRAFT_RATE: Final = 0.1
_MAX_CREDIT: Final = 1.0  # plain steps
_STALE_STEPS: Final = 512  # after which a width's time is measured again
_NUM_BUCKETS: Final = 16  # of batch sizes, by powers of two


class WidthController:
    """Chooses the width of each step. One per engine; not thread-safe; deterministic, without a clock of its own.

    Tensor-parallel ranks must all verify the same width: either one rank chooses and the width is broadcast, or all are
    fed the same numbers, which means the times of one rank. A rank that joins takes over `export_state()` of another.

    A step:

        if controller.should_draft(n):
            (draft)
            controller.observe_draft(n, seconds)
            width = controller.choose(path_probability, context_lens)
        else:
            width = 1
        (run the step)
        controller.observe(n, width, sum(context_lens), step_seconds, tokens_out)
        if width > 1:
            controller.observe_acceptance(path_probability[:, :width], accepted)

    `widths`: what the engine can run, ascending and starting with 1 (plain decoding); with CUDA graphs, those captured.
    Raises ConfigError for anything else.
    """

    def __init__(self, widths: Sequence[int] = DEFAULT_WIDTHS, *, probe_budget: float = 0.01) -> None:
        if not widths or widths[0] != 1 or any(a >= b for a, b in pairwise(widths)):
            raise ConfigError(f"speculation widths are {list(widths)}; expected ascending ones starting with 1")
        if not 0.0 <= probe_budget <= 0.5:
            raise ConfigError(f"the probe budget is {probe_budget}; expected a share of the time from 0 to 0.5")
        self.widths = tuple(widths)
        self._probe_budget = probe_budget
        self._step_time = StepTimeModel(self.widths)
        self._acceptance = AcceptanceModel(self.widths[-1])
        self._index = {width: index for index, width in enumerate(self.widths)}
        self._measured_at = np.full((_NUM_BUCKETS, len(self.widths)), -np.inf)
        self._num_steps = 0
        self._tokens = 0.0
        self._plain_tokens = 0.0
        self._gain = 1.0  # recent drafted steps' gain over plain ones, in plain steps: drafting has to disprove itself
        self._draft_s = 0.0  # a request
        self._has_draft_time = False
        self._was_drafted = False
        self._credit = 0.5 * _MAX_CREDIT

    @property
    def speedup(self) -> float:
        """Tokens a second of recent steps over those of plain decoding, by the model of step time; at least 1."""
        return max(1.0, self._tokens / self._plain_tokens) if self._plain_tokens else 1.0

    def should_draft(self, batch_size: int) -> bool:
        """Whether a draft for the next step is worth its host time. Where none pays, still True from time to time."""
        cost = self._draft_cost(batch_size)
        return self._gain >= cost or self._credit >= cost

    def observe_draft(self, batch_size: int, seconds: float) -> None:
        """By how much drafting delays the step that is about to be chosen: host time, and overlap that it prevents."""
        each = seconds / batch_size
        if not self._has_draft_time:
            self._draft_s, self._has_draft_time = each, True
        # An accident must not stop drafting, so the estimate follows the median rather than the mean.
        limit = 2.0 * self._draft_s
        self._draft_s += _DRAFT_RATE * (min(each, limit) - self._draft_s)
        self._was_drafted = True
        cost = self._draft_cost(batch_size)
        if self._gain < cost:
            self._credit -= cost

    def choose(self, path_probability: Probabilities, context_lens: npt.NDArray[np.int64]) -> int:
        """The width of this step, root included; 1 is plain decoding.

        `path_probability` is [n, max_width], non-increasing along each row's nodes, 0 where there is none. The width is
        at most max_width, and never larger than the smallest allowed one that holds every drafted node. With the same
        history, larger probabilities never make it narrower.
        """
        batch_size, max_width = path_probability.shape
        if batch_size == 0 or len(context_lens) != batch_size:
            raise ValueError(
                f"drafts of {batch_size} requests with {len(context_lens)} context lengths: expected as many"
            )
        max_width = min(max_width, self.widths[-1])
        drafted = path_probability[:, :max_width]
        # expected[w - 1] and stated[w - 1]: drafted tokens accepted at width w, over the batch
        expected = [0.0, *accumulate(self._acceptance.correct(drafted).sum(0)[1:].tolist())]
        stated = [0.0, *accumulate(drafted.sum(0)[1:].tolist())]
        seconds = self._step_time.seconds(batch_size, float(context_lens.sum()))
        step_value = self.speedup * batch_size  # tokens that a plain step's time is worth
        by_second = step_value / seconds[0]

        values = [expected[0] - step_value]
        best = best_stated = 0
        stated_best_value = values[0]
        for index in range(1, len(self.widths)):
            width = self.widths[index]
            if width > max_width or stated[width - 1] <= stated[self.widths[index - 1] - 1]:
                break
            price = by_second * seconds[index]
            values.append(expected[width - 1] - price)
            if values[index] > values[best]:
                best = index
            if stated[width - 1] - price > stated_best_value:
                best_stated, stated_best_value = index, stated[width - 1] - price
        chosen = self._probe(best, best_stated, values, batch_size, step_value)
        self._note_gain((values[best] - values[0]) / step_value, batch_size)
        return self.widths[chosen]

    def observe(self, batch_size: int, width: int, context_tokens: int, step_seconds: float, tokens_out: int) -> None:
        """One measured step, from its start to the next one's. `context_tokens`: before the step, over the batch.

        `tokens_out` is what all requests gained together; 0 marks a warm-up step, whose time alone counts.
        Raises ValueError for a width that is not among `widths`, or a time that is not positive.
        """
        index = self._index.get(width)
        if index is None:
            raise ValueError(f"a step of width {width}; this controller's are {list(self.widths)}")
        self._step_time.observe(batch_size, width, context_tokens, step_seconds)
        self._measured_at[_bucket(batch_size), index] = self._num_steps
        was_drafted, self._was_drafted = self._was_drafted, False
        if tokens_out <= 0:
            return
        seconds = self._step_time.seconds(batch_size, context_tokens)
        spent = seconds[index] + (self._draft_s * batch_size if was_drafted else 0.0)
        self._tokens = _SPEEDUP_FORGETTING * self._tokens + tokens_out
        self._plain_tokens = _SPEEDUP_FORGETTING * self._plain_tokens + batch_size * spent / seconds[0]
        self._credit = min(self._credit + self._probe_budget, _MAX_CREDIT)
        self._num_steps += 1

    def observe_acceptance(self, path_probability: Probabilities, accepted: npt.NDArray[np.bool_]) -> None:
        """What became of the verified nodes, both [n, width]; a node is accepted with the whole path to it. For chains,
        `accepted` is `np.arange(width) <= num_accepted[:, None]`."""
        self._acceptance.observe(path_probability, accepted)

    def export_state(self) -> Floats:
        """Everything learned, as one array of a length that depends on the number of widths only."""
        numbers = [
            self._num_steps,
            self._tokens,
            self._plain_tokens,
            self._gain,
            self._draft_s,
            self._has_draft_time,
            self._was_drafted,
            self._credit,
        ]
        return np.concatenate(
            [
                np.array([*self.widths, *numbers], np.float64),
                self._measured_at.ravel(),
                self._acceptance.state(),
                self._step_time.state(),
            ]
        )

    def import_state(self, state: Floats) -> None:
        """Takes over what another controller exported. Raises ValueError where its widths were others."""
        own = self.export_state()
        num_widths = len(self.widths)
        if state.shape != own.shape or not np.array_equal(state[:num_widths], own[:num_widths]):
            raise ValueError("the state is that of a controller with other widths: give both the same ones")
        ends = np.cumsum([num_widths, 8, self._measured_at.size, len(self._acceptance.state())])
        _, numbers, measured_at, acceptance, step_time = np.split(state, ends)
        self._num_steps = int(numbers[0])
        self._tokens, self._plain_tokens, self._gain, self._draft_s = (float(number) for number in numbers[1:5])
        self._has_draft_time, self._was_drafted = bool(numbers[5]), bool(numbers[6])
        self._credit = float(numbers[7])
        self._measured_at = measured_at.reshape(self._measured_at.shape).copy()
        self._acceptance.restore(acceptance)
        self._step_time.restore(step_time)

    def _probe(self, best: int, best_stated: int, values: list[float], batch_size: int, step_value: float) -> int:
        """The widest step that teaches something and that the budget can pay, else the best one. Never a narrower one:
        plain steps come by themselves, wherever nothing is drafted."""
        measured_at = self._measured_at[_bucket(batch_size)]
        for index in range(len(values) - 1, best, -1):
            if index <= best_stated or self._num_steps - measured_at[index] > _STALE_STEPS:
                loss = (values[best] - values[index]) / step_value
                if loss <= self._credit:
                    self._credit -= loss
                    return index
        return best

    def _note_gain(self, gain: float, batch_size: int) -> None:
        cost = self._draft_cost(batch_size)
        if self._gain < cost < gain:
            self._gain = gain  # the text began to repeat
        else:
            self._gain += _GAIN_RATE * (gain - self._gain)

    def _draft_cost(self, batch_size: int) -> float:
        """In plain steps."""
        if not self._has_draft_time:
            return 0.0
        return self._draft_s * batch_size / self._step_time.seconds(batch_size, 0.0)[0]


def _bucket(batch_size: int) -> int:
    return min(batch_size.bit_length(), _NUM_BUCKETS - 1)
