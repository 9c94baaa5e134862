"""Memory of finished contexts: persistent, bounded, searched by similarity. `ContextStore` is the way in."""

from __future__ import annotations

from agentinfer.spec_sam.store.errors import StoreError
from agentinfer.spec_sam.store.fingerprint import tokenizer_fingerprint
from agentinfer.spec_sam.store.options import StoreOptions
from agentinfer.spec_sam.store.payloads import StoredContext
from agentinfer.spec_sam.store.retrieval import Retrieved, Retriever
from agentinfer.spec_sam.store.store import ContextStore
from agentinfer.spec_sam.store.verify import verify_store

__all__ = [
    "ContextStore",
    "Retrieved",
    "Retriever",
    "StoreError",
    "StoreOptions",
    "StoredContext",
    "tokenizer_fingerprint",
    "verify_store",
]
