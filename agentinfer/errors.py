"""What can go wrong, by who has to act. Every message says what was seen, what was expected and what to do next."""

from __future__ import annotations


class AgentInferError(Exception):
    """Base of all our errors; `str()` is one message an operator can act on."""


class ConfigError(AgentInferError):
    """A flag, environment variable or configuration file holds a value we cannot take."""


class HintError(AgentInferError):
    """A request carries a malformed hint. Becomes HTTP 400; the request is not served.

    `field` is the dotted path of the offending field as the client sent it, e.g. ``agentinfer.turn``.
    """

    def __init__(self, field: str, seen: object, expected: str) -> None:
        text = repr(seen)
        super().__init__(f"{field}: expected {expected}, got {text if len(text) <= 80 else text[:77] + '...'}")
        self.field = field


class ModelError(AgentInferError):
    """An embedded model is unknown, corrupt or cannot be prepared."""


class SeamError(AgentInferError):
    """Upstream is not what we extend, or a hook did not take effect."""


class TraceError(AgentInferError):
    """A recorded session file cannot be read; the message names file, line and field."""


class SpeculationError(AgentInferError):
    """A drafting call that does not fit what was said before, or a draft memory that cannot be used."""
