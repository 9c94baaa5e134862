"""A turn in the simulated engine, from its arrival to the end of its reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agentinfer.radix_ext.paths import ROOT
from agentinfer.radix_ext.simulator.workload import SharedSegment


@dataclass(slots=True, eq=False)
class Request:
    """`prompt_tokens` grows by what was said when the engine takes the turn back; `output_tokens` are still to be said.

    `known_tokens` of the prompt were computed at least once, for this session: computing them again is recomputation.
    `node` is the locked node it builds on, `own_tokens` what it holds beside the tree. `joined_step` and
    `last_step` are the engine's decode steps after which its first and its last token were there.
    """

    rid: str
    session: str
    parent: str | None
    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    known_tokens: int
    is_last: bool
    tool: str | None
    shared: tuple[SharedSegment, ...]
    ended: Callable[[float], None]
    started_s: float | None = None
    node: int = ROOT
    own_tokens: int = 0
    prefilled_tokens: int = 0
    load_tokens: int = 0
    has_begun: bool = False
    joined_step: int = 0
    last_step: int = 0
    num_retractions: int = 0

    @property
    def left_to_prefill(self) -> int:
        return self.prompt_tokens - self.prefilled_tokens
