"""What a request says about its agent session: our own object and header, and the fields of other stacks.

A session id is taken from the first of these that has one:

1. body object ``agentinfer`` (ours; every field of `AgentHints`, strict)
2. header ``x-agentinfer-session``
3. SGLang's body field ``session_id``
4. OpenAI's ``prompt_cache_key`` (the key under which Codex and others keep one conversation's prefix)
5. Dynamo's ``nvext.agent_context`` and headers ``x-dynamo-session-id``, ``x-dynamo-parent-session-id``,
   ``x-dynamo-session-final``; ``nvext.agent_hints`` names no session, its ``priority`` and ``osl`` are kept
6. ThunderAgent's ``program_id`` (top level, or in a literal ``extra_body`` object)

Our own fields are checked strictly, unknown keys included, because a typo would silently lose the hint. Fields of other
stacks are checked only where they name a session; whatever else those stacks add is theirs.
"""

from __future__ import annotations

from agentinfer.hints.foreign import SOURCE_OPENAI
from agentinfer.hints.model import NO_HINTS, AgentHints, Forced
from agentinfer.hints.own import from_wire
from agentinfer.hints.parsing import parse_hints

__all__ = ["NO_HINTS", "SOURCE_OPENAI", "AgentHints", "Forced", "from_wire", "parse_hints"]
