"""What can go wrong with a store of contexts. Whatever happens, records that were stored stay readable."""

from __future__ import annotations

from agentinfer.errors import AgentInferError


class StoreError(AgentInferError):
    """The store cannot do what was asked; the message says what was seen, what was expected and what to do."""


class NotAStoreError(StoreError):
    """The folder is missing, empty or holds something else."""


class StoreLockedError(StoreError):
    """Another process writes to the store; any number may still read it."""


class WrongTokenizerError(StoreError):
    """The store was made with another tokenizer, under which its token ids mean something else."""


class UnknownNamespaceError(StoreError):
    """No context of that namespace is stored."""


class SegmentVersionError(StoreError):
    """A segment was written by a later version; it is left as it is."""
