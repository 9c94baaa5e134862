"""The records of a session: a turn under way, what is kept of a finished one, and the view others get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agentinfer.hints import AgentHints
from agentinfer.messages import DIGEST_BYTES, Api, Conversation, Message, Reply

SessionState = Literal["running", "in_tool", "idle", "finished"]
SESSION_STATES: tuple[SessionState, ...] = ("running", "in_tool", "idle", "finished")
Outcome = Literal["ok", "client_gone", "error"]


@dataclass(frozen=True, slots=True)
class TurnUsage:
    """Tokens of one turn as the engine counted them; `cached_tokens` of the `prompt_tokens` came from the cache.

    `again_*` are those of further prompts within the turn, for answers of a tool that is the server's. Completion
    tokens are of all together.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    again_prompt_tokens: int = 0
    again_cached_tokens: int = 0

    @property
    def all_prompt_tokens(self) -> int:
        return self.prompt_tokens + self.again_prompt_tokens

    @property
    def all_cached_tokens(self) -> int:
        return self.cached_tokens + self.again_cached_tokens


@dataclass(frozen=True, slots=True)
class TurnSnapshot:
    """A finished turn: enough to recognise its continuation and to say what changed since.

    `digests` packs the 16-byte digests of the request's messages. `messages` and `reply` hold the texts, and are None
    once the table's byte budget needed them. `is_partial` says the request left its history to the server
    (``previous_response_id``), so that its messages are not the whole prompt; `is_prompt` that it was one text or token
    prompt, which goes on after any character. `texts_bytes` is what the texts take.
    """

    turn: int
    digests: bytes = field(repr=False)
    reply_digest: bytes | None
    tools_digest: bytes
    is_partial: bool
    is_prompt: bool
    usage: TurnUsage | None
    texts_bytes: int
    messages: tuple[Message, ...] | None = field(repr=False)
    reply: Reply | None = field(repr=False)

    @property
    def num_messages(self) -> int:
        """Messages in the request; the reply is not counted."""
        return len(self.digests) // DIGEST_BYTES

    @property
    def sequence(self) -> bytes:
        """The packed digests of the request's messages and, where there is one, the reply."""
        return self.digests + (self.reply_digest or b"")

    @property
    def size_bytes(self) -> int:
        """About what holding this takes."""
        return 200 + len(self.digests) + (self.texts_bytes if self.messages is not None else 0)

    def without_texts(self) -> TurnSnapshot:
        """The same, recognisable by digest only."""
        return replace(self, messages=None, reply=None)

    def num_kept_in(self, conversation: Conversation) -> int:
        """How many leading messages of `conversation` repeat this turn's messages and reply."""
        if self.is_partial or self.is_prompt or conversation.previous_response_id is not None:
            return 0
        sequence = self.sequence
        limit = min(len(conversation.messages), len(sequence) // DIGEST_BYTES)
        for index in range(limit):
            start = index * DIGEST_BYTES
            if conversation.messages[index].digest != sequence[start : start + DIGEST_BYTES]:
                return index
        return limit


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn under way. The one who began it must end it, by `SessionTable.finish_turn` or `SessionTable.abandon`.

    `index` counts the session's turns from 0. `inferred` is True when content, not a hint, chose the session, and
    `evidence` says which. `continues` is the session's previous finished turn. `tool_gap_s` is the time since the reply
    that called `tool_names`, None when the previous reply called none. `num_kept` leading messages repeat the previous
    turn's messages and reply.
    """

    session_id: str
    index: int
    parent_id: str | None
    inferred: bool
    evidence: str
    continues: TurnSnapshot | None
    tool_gap_s: float | None
    tool_names: tuple[str, ...]
    num_kept: int
    hints: AgentHints = field(repr=False)
    conversation: Conversation = field(repr=False)
    api: Api
    started_s: float
    serial: int


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as /agentinfer/sessions shows it. Ages are in seconds before the view was taken."""

    session_id: str
    parent_id: str | None
    source: str
    role: str | None
    state: SessionState
    num_turns: int
    num_running: int
    tool_names: tuple[str, ...]
    age_s: float
    idle_s: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    num_messages: int
    texts_kept: bool
    notes: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The view as a JSON object."""
        return {
            "id": self.session_id,
            "parent": self.parent_id,
            "source": self.source,
            "role": self.role,
            "state": self.state,
            "turns": self.num_turns,
            "running": self.num_running,
            "tools": list(self.tool_names),
            "age_s": round(self.age_s, 3),
            "idle_s": round(self.idle_s, 3),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "messages": self.num_messages,
            "texts_kept": self.texts_kept,
            **self.notes,
        }
