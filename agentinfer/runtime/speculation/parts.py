"""What a worker is made of: drafter, width controller and metrics, from the configuration of this process."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from agentinfer.config import SpeculationConfig
from agentinfer.metrics import SpeculationMetrics
from agentinfer.runtime.speculation.requests import Drafter
from agentinfer.spec_sam import Speculation, SpeculationSettings
from agentinfer.spec_sam.width import DEFAULT_WIDTHS, WidthController


def make_drafter(settings: SpeculationConfig, model_config: Any) -> Drafter:
    """The drafter over the sessions' memory. `model_config`: the engine's, of the target model."""
    ends = tuple(sorted(model_config.hf_eos_token_id or ()))
    return Speculation(SpeculationSettings(stop_tokens=ends, chain=settings.spec_shape == "chain"))


class Controller(Protocol):
    """`agentinfer.spec_sam.width.WidthController`, as far as it is used here."""

    def should_draft(self, batch_size: int) -> bool: ...

    def observe_draft(self, batch_size: int, seconds: float) -> None: ...

    def choose(self, path_probability: np.ndarray, context_lens: np.ndarray) -> int: ...

    def observe(
        self, batch_size: int, width: int, context_tokens: int, step_seconds: float, tokens_out: int
    ) -> None: ...

    def observe_acceptance(self, path_probability: np.ndarray, accepted: np.ndarray) -> None: ...


class WholeDrafts:
    """The controller that has no opinion: every draft is verified whole. Steps then do not depend on measured times."""

    def __init__(self, max_width: int) -> None:
        self._max_width = max_width

    def should_draft(self, batch_size: int) -> bool:
        return True

    def observe_draft(self, batch_size: int, seconds: float) -> None:
        pass

    def choose(self, path_probability: np.ndarray, context_lens: np.ndarray) -> int:
        return self._max_width

    def observe(self, batch_size: int, width: int, context_tokens: int, step_seconds: float, tokens_out: int) -> None:
        pass

    def observe_acceptance(self, path_probability: np.ndarray, accepted: np.ndarray) -> None:
        pass


def make_controller(settings: SpeculationConfig, max_width: int) -> Controller:
    """The controller of an engine that runs any width up to `max_width`."""
    if not settings.spec_adapt:
        return WholeDrafts(max_width)
    return WidthController([*(width for width in DEFAULT_WIDTHS if width < max_width), max_width])


def make_metrics(server_args: Any) -> SpeculationMetrics | None:
    """Metrics in this process, where SGLang has its own; it has set up the client library for several processes."""
    return SpeculationMetrics() if server_args.enable_metrics else None
