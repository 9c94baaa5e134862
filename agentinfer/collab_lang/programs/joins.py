"""Joining forks into their parent's text, of which the interpreter says the ids alone.

It appends the forks' text to the parent's; that the parent has their messages as well is ours to see to.
"""

from __future__ import annotations

import weakref
from typing import Final

from sglang.lang.interpreter import StreamExecutor

from agentinfer.collab_lang.programs.conversation import Message

_KEPT_EARLY: Final = 256


class Joins:
    """Knows the programs that have asked for anything and still run; holds none of them."""

    def __init__(self) -> None:
        self._running: weakref.WeakValueDictionary[str, StreamExecutor] = weakref.WeakValueDictionary()
        # What was joined to parents that have asked for nothing yet, the newest last; some never will.
        self._early: dict[str, list[list[Message]]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def seen(self, s: StreamExecutor) -> None:
        """`s` asks for something: it gets what was joined to it before."""
        self._running[s.sid] = s
        for messages in reversed(self._early.pop(s.sid, [])):
            _add(s.messages_, messages)

    def join(self, fork_ids: list[str], parent_id: str) -> None:
        """The messages of the forks become the parent's, one fork's after the other's."""
        forks = [list(fork.messages_) for fork in map(self._running.get, fork_ids) if fork is not None]
        parent = self._running.get(parent_id)
        if parent is not None:
            for messages in reversed(forks):
                _add(parent.messages_, messages)
        elif forks:
            self._early[parent_id] = forks
            while len(self._early) > _KEPT_EARLY:
                self._early.pop(next(iter(self._early)))


def _add(parent: list[Message], fork: list[Message]) -> None:
    """Puts a fork's own messages behind those that the two share, in front of what the parent has said since."""
    shared = 0
    while shared < min(len(parent), len(fork)) and parent[shared] is fork[shared]:
        shared += 1
    parent[shared:shared] = fork[shared:]
