"""How many nodes of each draft a step verifies: one width for the batch, chosen by what the whole run gains from it.

The best width is not the one with the most tokens per second of this step. Over a run, a second is worth the tokens
that it yields elsewhere, so a step takes the width with the highest

    expected tokens - tokens a second of the run x seconds of the step

(the optimality condition of a ratio of sums: Dinkelbach, "On nonlinear fractional programming", 1967). Where drafts are
poor, a plain step hurries on to better text; where they are good, more of them is verified. Both rates are measured in
plain steps of the batch at hand, so that a machine that gets slower as a whole changes nothing.

Two accounts, both in plain steps, keep estimates from being trusted too far. *Capital* is what speculation has gained
over plain decoding so far, drafting time deducted, plus a small allowance for every step. It is capped, and nothing
that could lose more than what is there is tried; so on text that never repeats, however wrong the drafter is, the loss
is bounded by the allowance and the capital at the start. *Credit* paces steps that look unprofitable but teach
something, because what is not tried is not learned: widths not measured lately, and drafts whose like were refused
before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from agentinfer.errors import ConfigError
from agentinfer.spec_sam.acceptance import AcceptanceModel
from agentinfer.spec_sam.step_time import NUM_BUCKETS, StepTimeModel, bucket

Floats = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.float32]

DEFAULT_WIDTHS: Final = (1, 2, 3, 4, 6, 8, 12, 16)

_SPEEDUP_FORGETTING: Final = 0.995  # per step
_DRAFT_RATE: Final = 0.1
_MAX_CAPITAL: Final = 8.0  # plain steps
_MIN_CAPITAL: Final = -1.0
_MAX_SURPRISE: Final = 2.0  # times what the model says, beyond which a time is taken for an accident
_MAX_CREDIT: Final = 1.0
_STALE_STEPS: Final = 512  # after which a width's time is measured again
_PROBE_EVERY: Final = 4  # steps
_PLAIN_EVERY: Final = (16, 64)  # steps between plain ones, while capital is below 1 and otherwise


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

    def __init__(self, widths: Sequence[int] = DEFAULT_WIDTHS, *, allowance: float = 0.01) -> None:
        if not widths or widths[0] != 1 or any(a >= b for a, b in pairwise(widths)):
            raise ConfigError(f"speculation widths are {list(widths)}; expected ascending ones starting with 1")
        if not 0.0 < allowance <= 0.5:
            raise ConfigError(f"the speculation allowance is {allowance}; expected a share of the time, up to 0.5")
        self.widths = tuple(widths)
        self._allowance = allowance
        self._step_time = StepTimeModel(self.widths)
        self._acceptance = AcceptanceModel()
        self._index = {width: index for index, width in enumerate(self.widths)}
        self._measured_at = [[-math.inf] * len(self.widths) for _ in range(NUM_BUCKETS)]
        self._num_steps = 0
        self._tokens = 0.0
        self._plain_tokens = 0.0
        self._draft_s = 0.0  # a request
        self._has_draft_time = False
        self._was_drafted = False
        self._context_len = 0.0  # of a request, in the latest step
        self._capital = 0.5 * _MAX_CAPITAL
        self._credit = 0.5 * _MAX_CREDIT

    @property
    def speedup(self) -> float:
        """Tokens a second of recent steps over those of plain decoding, by the model of step time; at least 1."""
        return max(1.0, self._tokens / self._plain_tokens) if self._plain_tokens else 1.0

    def should_draft(self, batch_size: int) -> bool:
        """Whether to draft for the next step: whenever the capital pays for the draft and for verifying the least of
        it. Where nothing repeats, that is from time to time."""
        if len(self.widths) == 1:
            return False
        seconds = self._step_time.seconds(batch_size, self._context_len * batch_size)
        cost = (self._draft_s * batch_size + seconds[1]) / seconds[0] - 1.0
        return self._capital >= min(cost, 0.5 * _MAX_CAPITAL)

    def observe_draft(self, batch_size: int, seconds: float) -> None:
        """By how much drafting delays the step that is about to be chosen: host time, and overlap that it prevents."""
        each = seconds / batch_size
        if not self._has_draft_time:
            self._draft_s, self._has_draft_time = each, True
        # An accident must not stop drafting, so the estimate follows the median rather than the mean.
        limit = 2.0 * self._draft_s
        self._draft_s += _DRAFT_RATE * (min(each, limit) - self._draft_s)
        self._was_drafted = True

    def choose(self, path_probability: Probabilities, context_lens: npt.NDArray[np.int64]) -> int:
        """The width of this step, root included; 1 is plain decoding.

        `path_probability` is [n, max_width], non-increasing along each row's nodes, 0 where there is none. The width is
        at most max_width, and never larger than the smallest allowed one that holds every drafted node. With the same
        history, larger probabilities never make it narrower.
        """
        batch_size, max_width = path_probability.shape
        if batch_size == 0 or len(context_lens) != batch_size:
            raise ValueError(f"{batch_size} drafts but {len(context_lens)} context lengths; expected one each")
        measured_at = self._measured_at[bucket(batch_size)]
        if self._num_steps - measured_at[0] > _PLAIN_EVERY[self._capital >= 1.0]:
            return 1  # all that speculation is said to gain is by comparison with this
        # expected[w - 1]: drafted tokens accepted at width w, over the batch
        expected = [0.0, *accumulate(np.add.reduce(self._acceptance.correct(path_probability))[1:].tolist())]
        seconds = self._step_time.seconds(batch_size, float(np.add.reduce(context_lens)))
        plain_s = seconds[0]
        step_value = self.speedup * batch_size  # tokens that a plain step's time is worth

        best, most = 0, -step_value
        values = [most]  # of each width that may be taken: tokens above one a request, less what the time is worth
        for index in range(1, len(self.widths)):
            width = self.widths[index]
            relative = seconds[index] / plain_s
            if width > max_width or expected[width - 1] <= expected[self.widths[index - 1] - 1]:
                break
            if relative - 1.0 > self._capital or (index > 1 and measured_at[index - 1] < 0):
                break  # more than may be lost, or a leap: wider steps are tried one after the other
            value = expected[width - 1] - step_value * relative
            values.append(value)
            if value > most:
                best, most = index, value
        if best < len(values) - 1 and self._num_steps % _PROBE_EVERY == 0:
            stated = [0.0, *accumulate(np.add.reduce(path_probability)[1:].tolist())]
            as_stated = [value + stated[w - 1] - expected[w - 1] for value, w in zip(values, self.widths, strict=False)]
            hopeful = as_stated.index(max(as_stated))
            for index in range(len(values) - 1, best, -1):
                if index <= hopeful or self._num_steps - measured_at[index] > _STALE_STEPS:
                    loss = (most - values[index]) / step_value
                    if loss <= self._credit:
                        self._credit -= loss
                        return self.widths[index]
        return self.widths[best]

    def observe(self, batch_size: int, width: int, context_tokens: int, step_seconds: float, tokens_out: int) -> None:
        """One measured step, from its start to the next one's, without the drafting. `context_tokens`: what it read,
        over the batch, before its own tokens. Steps that something else came into may be left out.

        `tokens_out` is what all requests gained together; 0 marks a warm-up step, whose time alone counts.
        Raises ValueError for a width that is not among `widths`, or a time that is not positive.
        """
        index = self._index.get(width)
        if index is None:
            raise ValueError(f"a step of width {width}; this controller's are {list(self.widths)}")
        measured_at = self._measured_at[bucket(batch_size)]
        is_new = measured_at[index] < 0
        if self._step_time.observe(batch_size, width, context_tokens, step_seconds):
            measured_at[index] = self._num_steps
        self._context_len = context_tokens / batch_size
        was_drafted, self._was_drafted = self._was_drafted, False
        if tokens_out <= 0:
            return
        seconds = self._step_time.seconds(batch_size, context_tokens)
        spent = seconds[index]
        if is_new and width > 1:  # the model knows such steps too little to say what they cost
            spent = max(spent, min(step_seconds, _MAX_SURPRISE * spent))
        if was_drafted:
            spent += self._draft_s * batch_size
        self._tokens = _SPEEDUP_FORGETTING * self._tokens + tokens_out
        self._plain_tokens = _SPEEDUP_FORGETTING * self._plain_tokens + batch_size * spent / seconds[0]
        gain = tokens_out / batch_size - spent / seconds[0]
        self._capital = max(_MIN_CAPITAL, min(self._capital + gain + self._allowance, _MAX_CAPITAL))
        self._credit = min(self._credit + self._allowance, _MAX_CREDIT)
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
            self._capital,
            self._draft_s,
            self._has_draft_time,
            self._was_drafted,
            self._credit,
            self._context_len,
        ]
        return np.concatenate(
            [
                np.array([*self.widths, *numbers], np.float64),
                np.ravel(self._measured_at),
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
        ends = np.cumsum([num_widths, 9, NUM_BUCKETS * num_widths, len(self._acceptance.state())])
        _, numbers, measured_at, acceptance, step_time = np.split(state, ends)
        self._num_steps = int(numbers[0])
        self._tokens, self._plain_tokens, self._capital, self._draft_s = (float(number) for number in numbers[1:5])
        self._has_draft_time, self._was_drafted = bool(numbers[5]), bool(numbers[6])
        self._credit, self._context_len = float(numbers[7]), float(numbers[8])
        self._measured_at = measured_at.reshape(NUM_BUCKETS, num_widths).tolist()
        self._acceptance.restore(acceptance)
        self._step_time.restore(step_time)
