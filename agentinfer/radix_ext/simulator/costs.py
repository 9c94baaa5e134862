"""What an engine's work takes: some seconds and rates, of a reference engine or measured (`agentinfer calibrate`).

    a decode step   step_s + sequence_s * sequences + kv_token_s * tokens they attend to
    a chunk         request_s * requests that begin in it + tokens / prefill_tokens_per_s + attention_s * pairs

Pairs are those of a token and one that it attends to. With `is_mixed`, running sequences advance one token a chunk;
without, they stand still until the waiting prompts are done, as in SGLang unless started with --enable-mixed-chunk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from agentinfer.errors import AgentInferError


class SimulationError(AgentInferError):
    """Costs, a workload or a policy that cannot be simulated."""


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """Defaults: an 8B-32B model's order of magnitude on one H200.

    `chunk_tokens` and `max_running` are SGLang's chunked prefill size and bound on running requests. Admission keeps
    room for `reserved_output_tokens` of the request it admits and `running_reserve` of them for each that runs, as
    SGLang's does for requests without a limit of their own. `load_tokens_per_s`: from host memory to the device.
    """

    step_s: float = 0.009
    sequence_s: float = 60e-6
    kv_token_s: float = 55e-9
    prefill_tokens_per_s: float = 14_000.0
    request_s: float = 0.004
    attention_s: float = 0.0
    chunk_tokens: int = 4096
    max_running: int = 64
    reserved_output_tokens: int = 4096
    running_reserve: float = 0.1
    load_tokens_per_s: float = 200_000.0
    is_mixed: bool = True

    def __post_init__(self) -> None:
        """Raises SimulationError naming the field."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "is_mixed":
                if not isinstance(value, bool):
                    raise SimulationError(f"costs: {field.name}: expected true or false, got {value!r}")
                continue
            kinds = (int,) if field.name in _WHOLE else (int, float)
            lowest = 1 if field.name in _AT_LEAST_ONE else 0
            if type(value) not in kinds or not math.isfinite(value) or value < lowest:
                kind = "a whole number" if field.name in _WHOLE else "a number"
                raise SimulationError(f"costs: {field.name}: expected {kind} from {lowest}, got {value!r}")
        if self.step_s + self.sequence_s <= 0:
            raise SimulationError("costs: a decode step takes no time: step_s and sequence_s are both 0")

    def steps_s(self, num_steps: int, num_sequences: int, kv_tokens: int) -> float:
        """Seconds of consecutive decode steps; every sequence grows by a token a step."""
        first_s = self.step_s + self.sequence_s * num_sequences + self.kv_token_s * kv_tokens
        return num_steps * first_s + self.kv_token_s * num_sequences * num_steps * (num_steps - 1) / 2

    def steps_until(self, seconds: float, num_sequences: int, kv_tokens: int) -> int:
        """The fewest whole steps, at least 1, that take `seconds` or longer: the inverse of `steps_s`."""
        first_s = self.step_s + self.sequence_s * num_sequences + self.kv_token_s * kv_tokens
        growth_s = self.kv_token_s * num_sequences
        if growth_s * seconds <= 1e-9 * first_s * first_s:
            steps = math.ceil(seconds / first_s)
        else:
            linear = first_s - growth_s / 2
            steps = math.ceil((math.sqrt(linear * linear + 2 * growth_s * seconds) - linear) / growth_s)
        steps = max(1, steps)
        while steps > 1 and self.steps_s(steps - 1, num_sequences, kv_tokens) >= seconds:
            steps -= 1
        while self.steps_s(steps, num_sequences, kv_tokens) < seconds:
            steps += 1
        return steps

    def chunk_s(self, num_tokens: int, first_token: int) -> float:
        """Seconds to prefill `num_tokens` of one prompt, of which `first_token` tokens were there before."""
        pairs = num_tokens * (first_token + num_tokens / 2)
        return num_tokens / self.prefill_tokens_per_s + self.attention_s * pairs


_WHOLE: Final = frozenset({"chunk_tokens", "max_running", "reserved_output_tokens"})
_AT_LEAST_ONE: Final = frozenset({"chunk_tokens", "max_running", "prefill_tokens_per_s", "load_tokens_per_s"})

PRESETS: Final[Mapping[str, EngineCosts]] = {"reference": EngineCosts()}


def load(name: str) -> EngineCosts:
    """A preset by name, or a file that `save` or `agentinfer calibrate` wrote. Raises SimulationError."""
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = ", ".join(PRESETS)
        raise SimulationError(f"costs {name}: no preset ({known}) and no file of costs: {error}") from None
    found = content.get("costs") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise SimulationError(f"{name}: expected an object with 'costs', as `agentinfer calibrate --json` writes it")
    unknown = sorted(set(found) - {field.name for field in fields(EngineCosts)})
    if unknown:
        raise SimulationError(f"{name}: costs: unknown {', '.join(unknown)}")
    return replace(EngineCosts(), **found)


def to_json(costs: EngineCosts) -> dict[str, Any]:
    """What `load` reads, under the key 'costs'."""
    return asdict(costs)
