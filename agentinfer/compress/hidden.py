"""What a model and the server said to each other behind a reply, which the client's history does not hold.

An answered `recall` belongs to what the model has read, and its KV is in the cache. So it is put back into the
session's later prompts where it was had: ahead of the reply, after exactly the history that this was a reply to. It is
known by the digest of that history, as compositions are, and goes when a later composition takes in the reply.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

from agentinfer.compress.composition import Composition
from agentinfer.messages import EMPTY_DIGEST, Message, chained

# Between what a model said before a call that its client does not see, and what it said behind it.
SEPARATOR: Final = "\n\n"


@dataclass(frozen=True, slots=True)
class Exchange:
    """`before` are whole messages ahead of the reply, and `said` is their text with which the client's reply begins.

    `beside` are calls that the reply had among the client's own, each with its place, and `results` their answers. All
    messages are OpenAI chat messages.
    """

    before: tuple[Mapping[str, Any], ...] = field(repr=False)
    said: str = ""
    beside: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    results: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def messages(self) -> tuple[Mapping[str, Any], ...]:
        """All that the client does not have."""
        return (*self.before, *self.results)

    @property
    def size_bytes(self) -> int:
        return 200 + sum(200 + len(str(each.get("content") or "")) for each in self.messages)

    def around(self, reply: Any) -> list[Any]:
        """The client's message of the reply with what stands around it; a message that is no reply stays alone."""
        if not isinstance(reply, Mapping) or reply.get("role") != "assistant":
            return [reply]
        message = dict(reply)
        text = message.get("content")
        if self.said and isinstance(text, str) and text.startswith(self.said):
            message["content"] = text[len(self.said) :].removeprefix(SEPARATOR)
        calls = message.get("tool_calls")
        if not self.beside or not isinstance(calls, list):
            return [*self.before, message]
        calls = list(calls)
        for place, call in self.beside:
            calls.insert(place, call)
        return [*self.before, {**message, "tool_calls": calls}, *self.results]


class Exchanges:
    """The exchanges of all sessions within a budget of bytes; the least recently used go first. Not thread-safe.

    One that is gone costs the model what it had read: it sees the id and may call again.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._known: OrderedDict[bytes, tuple[str, Exchange]] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def put(self, session_id: str, history: bytes, exchange: Exchange) -> None:
        """Keeps what was said behind the reply to the messages with the chained digest `history`."""
        self._drop(history)
        self._known[history] = (session_id, exchange)
        self._size_bytes += exchange.size_bytes
        while self._size_bytes > self._max_bytes:
            self._drop(next(iter(self._known)))

    def forget_session(self, session_id: str) -> None:
        """No further turn of the session is expected."""
        for history in [each for each, (owner, _) in self._known.items() if owner == session_id]:
            self._drop(history)

    def sent(self, composition: Composition, messages: Sequence[Any], chain: Sequence[bytes]) -> list[Any]:
        """A history as the engine gets it: composed, with what was said behind its replies since then.

        `messages` are the client's, and `chain[i]` is the digest of the first i + 1 of them.
        """
        built: list[Any] = list(composition.messages)
        for index in range(composition.covers, len(messages)):
            exchange = self._find(chain[index - 1])
            built += [messages[index]] if exchange is None else exchange.around(messages[index])
        return built

    def hidden(self, composition: Composition, chain: Sequence[bytes]) -> list[Mapping[str, Any]]:
        """What `sent` adds to the client's messages."""
        links = chain[composition.covers - 1 : -1]
        return [message for link in links if (known := self._find(link)) is not None for message in known.messages]

    def _find(self, history: bytes) -> Exchange | None:
        known = self._known.get(history)
        if known is None:
            return None
        self._known.move_to_end(history)
        return known[1]

    def _drop(self, history: bytes) -> None:
        known = self._known.pop(history, None)
        if known is not None:
            self._size_bytes -= known[1].size_bytes


def chain_of(messages: Sequence[Message]) -> tuple[bytes, ...]:
    """The chained digests of a history: one for each of its beginnings."""
    links = accumulate((message.digest for message in messages), chained, initial=EMPTY_DIGEST)
    return tuple(links)[1:]
