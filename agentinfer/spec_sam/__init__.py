"""Drafting from a suffix automaton over the agents' memory.

The compiled core does the work where it was built; its Python twin stands in, much slower, where it was not. `BACKEND`
says which: "native" or "reference".
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
        Match,
        StateInfo,
        extend_batch,
        match_batch,
    )

    BACKEND: str
else:
    if find_spec("agentinfer.spec_sam._core"):  # where it exists but does not load, that error must be seen
        from agentinfer.spec_sam import _core as _backend

        BACKEND = "native"
    else:
        from agentinfer.spec_sam import reference as _backend

        BACKEND = "reference"
        logger.warning("no compiled core, so drafting is slow; build it with: pip install --no-build-isolation -e .")
    Automaton = _backend.Automaton
    Continuation = _backend.Continuation
    Cursor = _backend.Cursor
    Match = _backend.Match
    StateInfo = _backend.StateInfo
    extend_batch = _backend.extend_batch
    match_batch = _backend.match_batch

__all__ = [
    "BACKEND",
    "Automaton",
    "Continuation",
    "Cursor",
    "Match",
    "StateInfo",
    "extend_batch",
    "match_batch",
]
