"""What a worker is made of: drafter, width controller and metrics, from the configuration of this process."""

from __future__ import annotations

from typing import Any

from agentinfer.metrics import SpeculationMetrics
from agentinfer.runtime.speculation.requests import Drafter
from agentinfer.spec_sam.width import DEFAULT_WIDTHS, WidthController


def make_drafter(server_args: Any) -> Drafter:
    """The drafter over the sessions' memory."""
    from agentinfer.spec_sam import Speculation

    return Speculation()


def make_controller(max_width: int) -> WidthController:
    """The controller of an engine that runs any width up to `max_width`."""
    return WidthController([*(width for width in DEFAULT_WIDTHS if width < max_width), max_width])


def make_metrics(server_args: Any) -> SpeculationMetrics | None:
    """Metrics in this process, where SGLang has its own; it has set up the client library for several processes."""
    return SpeculationMetrics() if server_args.enable_metrics else None
