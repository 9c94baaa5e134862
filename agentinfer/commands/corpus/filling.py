"""Putting sessions into a store: recorded ones, or those of an exported file. What is there stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from agentinfer.commands.corpus import lines, recorded
from agentinfer.replay.session import Session
from agentinfer.spec_sam.store import ContextStore


@dataclass(slots=True)
class Filled:
    """`skipped` sessions had been in the store, under the same name, before."""

    sessions: int = 0
    contexts: int = 0
    skipped: int = 0


def fill_recorded(
    store: ContextStore,
    namespace: str,
    sessions: Iterable[Session],
    tokenizer: recorded.ChatTokenizer,
    told: Callable[[str], None] = lambda _: None,
) -> Filled:
    """Every turn of the sessions; `told` hears the name of each session that was stored. Raises StoreError."""
    filled = Filled()
    for session in sessions:
        if store.contexts(namespace, session.id):
            filled.skipped += 1
            continue
        for turn in recorded.turns(session, tokenizer):
            filled.contexts += store.add(namespace, session.id, turn.turn, turn.prompt, turn.response) is not None
        filled.sessions += 1
        told(session.id)
    return filled


def fill_exported(store: ContextStore, path: Path, namespace: str | None = None) -> Filled:
    """What `lines.export` wrote; `namespace` overrides that of every line. Raises TraceError or StoreError."""
    filled = Filled()
    present = {(c.namespace, c.session) for c in store.contexts()}
    new_ids: dict[int, int] = {}
    taken: set[tuple[str, str]] = set()
    skipped: set[tuple[str, str]] = set()
    for line in lines.read(path):
        target = (namespace or line.namespace, line.session)
        if target in present:
            skipped.add(target)
            continue
        parent = new_ids.get(line.parent, 0)
        if parent and not store.has(parent):  # evicted meanwhile: the store is smaller than the file
            parent = 0
        new_ids[line.id] = store.add_new(
            *target,
            line.turn,
            line.tokens,
            line.response_start,
            parent=parent,
            shared=line.shared,
            added_unix_s=line.added_unix_s,
        )
        if line.usefulness:
            store.credit(new_ids[line.id], line.usefulness)
        filled.contexts += 1
        taken.add(target)
    filled.sessions, filled.skipped = len(taken), len(skipped)
    return filled
