"""Drafting from a suffix automaton over the agents' memory.

An engine's worker uses `Speculation`; the automaton and its drafting stand on their own as well.
"""

from __future__ import annotations

from agentinfer.spec_sam.backend import (
    BACKEND,
    Automaton,
    Continuation,
    Cursor,
    DraftModel,
    DraftRows,
    DraftStream,
    Match,
    StateInfo,
    draft_batch,
    extend_batch,
    match_batch,
)
from agentinfer.spec_sam.drafts import DraftBatch, SpeculationSettings
from agentinfer.spec_sam.speculation import Speculation

__all__ = [
    "BACKEND",
    "Automaton",
    "Continuation",
    "Cursor",
    "DraftBatch",
    "DraftModel",
    "DraftRows",
    "DraftStream",
    "Match",
    "Speculation",
    "SpeculationSettings",
    "StateInfo",
    "draft_batch",
    "extend_batch",
    "match_batch",
]
