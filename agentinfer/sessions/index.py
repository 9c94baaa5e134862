"""Finding sessions by content: digests of where each session stands, and the sessions that stand there.

Two structures, because the APIs continue differently. With message lists, a prefix of messages has a digest and so a
key. With text and token prompts the next prompt may go on after any byte, so each stored prefix is filed under the
digest of its longest part that ends on a fixed boundary: a lookup hashes the new prompt once, sees at each boundary the
lengths that were filed there, and checks only those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import Final

from agentinfer.messages import DIGEST_BYTES

PROMPT_STRIDE_BYTES: Final = 4096
_SMALL_BOUNDARIES: Final = tuple(1 << exponent for exponent in range(4, 12))


class Point(IntEnum):
    """What a key stands for."""

    REPLIED = 1
    """The latest turn's messages and our reply: extending this is what a continuation normally does."""
    ASKED = 2
    """The latest turn's messages without the reply: a client that rewrites replies extends only this."""
    JOINT = 3
    """The latest turn's last message and our reply, whatever stood before them: survives an edited beginning."""
    CALL = 4
    """The id of a tool call in our latest reply."""
    RESPONSE = 5
    """The id of our latest response, which ``previous_response_id`` names."""
    EARLIER = 6
    """Like REPLIED, of a turn before the latest: a rewind or a fork."""
    EARLIER_RESPONSE = 7
    """Like RESPONSE, of a turn before the latest."""
    RETRY = 8
    """The messages of a turn that failed or whose client went away: the same request again is the same turn."""


Key = tuple[Point, bytes]


@dataclass(frozen=True, slots=True)
class PromptPoint:
    """A prefix of a text or token prompt: its length, its digest, and the digest at the boundary it is filed under."""

    length: int
    digest: bytes
    boundary_digest: bytes


class ContentIndex:
    """Keys to session ids, both ways. Owned by a SessionTable; ids come back in the order in which they were filed."""

    def __init__(self) -> None:
        self._sessions_of: dict[Key, dict[str, None]] = {}
        self._keys_of: dict[str, dict[Key, None]] = {}
        # boundary digest -> length -> how many sessions' keys have it
        self._lengths_at: dict[bytes, dict[int, int]] = {}
        self._prompts_of: dict[str, dict[Key, PromptPoint]] = {}

    def add(self, session_id: str, key: Key) -> None:
        """File a session under a key; filing twice changes nothing."""
        self._sessions_of.setdefault(key, {})[session_id] = None
        self._keys_of.setdefault(session_id, {})[key] = None

    def add_prompt(self, session_id: str, point: Point, prefix: PromptPoint) -> None:
        """File a session under a prefix of a text or token prompt."""
        key = (point, prompt_key(prefix.length, prefix.digest))
        prompts = self._prompts_of.setdefault(session_id, {})
        if key not in prompts:
            prompts[key] = prefix
            lengths = self._lengths_at.setdefault(prefix.boundary_digest, {})
            lengths[prefix.length] = lengths.get(prefix.length, 0) + 1
        self.add(session_id, key)

    def discard(self, session_id: str, key: Key) -> None:
        """Take back one key, if it is filed."""
        keys = self._keys_of.get(session_id)
        if keys is None or key not in keys:
            return
        del keys[key]
        sessions = self._sessions_of[key]
        del sessions[session_id]
        if not sessions:
            del self._sessions_of[key]
        if not keys:
            del self._keys_of[session_id]
        prompts = self._prompts_of.get(session_id)
        prefix = prompts.pop(key, None) if prompts is not None else None
        if prompts is not None and prefix is not None:
            lengths = self._lengths_at[prefix.boundary_digest]
            lengths[prefix.length] -= 1
            if not lengths[prefix.length]:
                del lengths[prefix.length]
            if not lengths:
                del self._lengths_at[prefix.boundary_digest]
            if not prompts:
                del self._prompts_of[session_id]

    def remove_session(self, session_id: str) -> None:
        """Take back all keys of a session."""
        for key in tuple(self._keys_of.get(session_id, ())):
            self.discard(session_id, key)

    def keys_of(self, session_id: str) -> Iterable[Key]:
        """The keys a session is filed under."""
        return self._keys_of.get(session_id, ())

    def has(self, session_id: str) -> bool:
        """True when the session is filed under any key."""
        return session_id in self._keys_of

    def sessions(self) -> set[str]:
        """The sessions that are filed."""
        return set(self._keys_of)

    def prompt_point(self, session_id: str, key: Key) -> PromptPoint | None:
        """The prefix behind a key that `add_prompt` filed."""
        return self._prompts_of.get(session_id, {}).get(key)

    def find(self, point: Point, digest: bytes) -> tuple[str, ...]:
        """Sessions filed under a key, oldest filing first."""
        return tuple(self._sessions_of.get((point, digest), ()))

    def prompt_prefixes(self, prompt: bytes) -> Iterator[tuple[int, bytes]]:
        """Stored prefixes that `prompt` may extend or equal: (length, digest of that many bytes), longest first."""
        found: list[tuple[int, bytes]] = []
        for hasher, start, _ in _boundaries(prompt):
            for length in self._lengths_at.get(hasher.digest(), ()):
                if length <= len(prompt):
                    extended = hasher.copy()
                    extended.update(prompt[start:length])
                    found.append((length, extended.digest()))
        found.sort(reverse=True)
        return iter(found)

    def check_integrity(self) -> None:
        """Recompute every derived table; raises AssertionError naming the broken rule."""
        forward = {(key, session) for key, sessions in self._sessions_of.items() for session in sessions}
        backward = {(key, session) for session, keys in self._keys_of.items() for key in keys}
        _require(forward == backward, "every key of a session must lead back to it")
        _require(all(self._sessions_of.values()) and all(self._keys_of.values()), "no empty entry may stay")
        lengths: dict[bytes, dict[int, int]] = {}
        for session, prompts in self._prompts_of.items():
            for key, prefix in prompts.items():
                _require(key in self._keys_of.get(session, {}), f"prompt key of {session} must be filed")
                counts = lengths.setdefault(prefix.boundary_digest, {})
                counts[prefix.length] = counts.get(prefix.length, 0) + 1
        _require(lengths == self._lengths_at, "lengths at each boundary must be those of the filed prompts")

    def __len__(self) -> int:
        """How many (key, session) pairs are filed."""
        return sum(len(keys) for keys in self._keys_of.values())


def prompt_point(prefix: bytes) -> PromptPoint:
    """The point at the end of `prefix`."""
    hasher, start, _ = next(reversed(list(_boundaries(prefix))))
    boundary_digest = hasher.digest()
    hasher.update(prefix[start:])
    return PromptPoint(len(prefix), hasher.digest(), boundary_digest)


def prompt_key(length: int, digest: bytes) -> bytes:
    """The key bytes of a prompt prefix."""
    return length.to_bytes(8, "little") + digest


def _boundaries(prompt: bytes) -> Iterator[tuple[blake2b, int, int]]:
    """(hasher over prompt[:start], start, next boundary) at 0, 16, 32, .. 2048, 4096, 8192, 12288, .. up to the end.

    The hasher is advanced in place: copy it before updating it while the iteration goes on.
    """
    view = memoryview(prompt)
    hasher = blake2b(digest_size=DIGEST_BYTES)
    start = 0
    small = iter(_SMALL_BOUNDARIES)
    while True:
        following = next(small, 0) or (start // PROMPT_STRIDE_BYTES + 1) * PROMPT_STRIDE_BYTES
        yield hasher, start, following
        if following > len(prompt):
            return
        hasher.update(view[start:following])
        start = following


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(f"ContentIndex: {rule}")
