"""What clients and model say to each other, read from the five generation APIs into one form."""

from __future__ import annotations

from agentinfer.messages.content import token_bytes, utf8
from agentinfer.messages.model import (
    DIGEST_BYTES,
    EMPTY_DIGEST,
    Api,
    Message,
    ToolCall,
    canonical_digest,
    chained,
)
from agentinfer.messages.replies import Reply, shortened
from agentinfer.messages.requests import MAX_MESSAGES, PATHS, Conversation

__all__ = [
    "DIGEST_BYTES",
    "EMPTY_DIGEST",
    "MAX_MESSAGES",
    "PATHS",
    "Api",
    "Conversation",
    "Message",
    "Reply",
    "ToolCall",
    "canonical_digest",
    "chained",
    "shortened",
    "token_bytes",
    "utf8",
]
