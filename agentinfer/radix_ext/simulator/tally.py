"""What happened in a simulation, counted as it happens."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Seconds and tokens over all replicas. Prompt tokens are counted once for each time a turn starts.

    A turn waits until it starts for the first time and is served from then on; `turns_s` is both together.

    A turn's prompt tokens are found on the device (`hit_tokens`), brought back from the host (`loaded_tokens`), or
    computed; of the computed ones, `recomputed_tokens` had been computed before.
    """

    completions_s: list[float] = field(default_factory=list)
    turns_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    serves_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    hit_tokens: int = 0
    loaded_tokens: int = 0
    recomputed_tokens: int = 0
    output_tokens: int = 0
    num_plans: int = 0
    num_decode_steps: int = 0
    num_chunks: int = 0
    num_retractions: int = 0
    busy_s: float = 0.0
    evicted_tokens: int = 0
