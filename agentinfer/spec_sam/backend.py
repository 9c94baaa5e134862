"""The compiled core where it was built; its Python twin, much slower, where it was not. `BACKEND` says which.

BACKEND is "native" or "reference".
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from agentinfer.spec_sam._core import (
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

    BACKEND: str
else:
    if find_spec("agentinfer.spec_sam._core"):  # where it exists but does not load, that error must be seen
        from agentinfer.spec_sam import _core as _automata
        from agentinfer.spec_sam import _core as _drafting

        BACKEND = "native"
    else:
        from agentinfer.spec_sam import reference as _automata
        from agentinfer.spec_sam import reference_drafting as _drafting

        BACKEND = "reference"
        logger.warning("no compiled core, so drafting is slow; build it with: pip install --no-build-isolation -e .")
    Automaton = _automata.Automaton
    Continuation = _automata.Continuation
    Cursor = _automata.Cursor
    Match = _automata.Match
    StateInfo = _automata.StateInfo
    extend_batch = _automata.extend_batch
    match_batch = _automata.match_batch
    DraftModel = _drafting.DraftModel
    DraftRows = _drafting.DraftRows
    DraftStream = _drafting.DraftStream
    draft_batch = _drafting.draft_batch

__all__ = [
    "BACKEND",
    "Automaton",
    "Continuation",
    "Cursor",
    "DraftModel",
    "DraftRows",
    "DraftStream",
    "Match",
    "StateInfo",
    "draft_batch",
    "extend_batch",
    "match_batch",
]
