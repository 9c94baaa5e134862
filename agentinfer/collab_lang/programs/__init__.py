"""SGLang frontend programs on two models: any `@sgl.function` runs on a `CollabBackend` as it is."""

from __future__ import annotations

from agentinfer.collab_lang.programs.backend import CollabBackend, CollabError
from agentinfer.collab_lang.programs.decorator import CollabProgram, collab
from agentinfer.collab_lang.programs.tools import Call, Tools
from agentinfer.collab_lang.programs.trail import TrailStep, collab_trail

__all__ = ["Call", "CollabBackend", "CollabError", "CollabProgram", "Tools", "TrailStep", "collab", "collab_trail"]
