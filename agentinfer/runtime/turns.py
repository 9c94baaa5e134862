"""One turn on its way through the server: begun when the request came, filled in by the engine, then finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agentinfer.clock import Clock
from agentinfer.hints import AgentHints
from agentinfer.messages import Conversation
from agentinfer.sessions import Turn, TurnUsage

if TYPE_CHECKING:
    from agentinfer.compress.composition import Composition
    from agentinfer.runtime.exchange import App
    from agentinfer.runtime.prefill.door import Asked

# Bound by the HTTP middleware for the request being served; a copy of the context reaches every task made for it.
current_turn: ContextVar[FollowedTurn | None] = ContextVar("agentinfer_turn", default=None)


@dataclass(slots=True)
class FollowedTurn:
    """A turn of a session, and what is known of it so far. Times are in seconds on `clock`."""

    turn: Turn
    hints: AgentHints
    conversation: Conversation
    sampling: Mapping[str, Any]
    clock: Clock = field(repr=False)
    arrived_s: float
    arrived_unix_s: float
    first_token_s: float | None = None
    queue_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    finish_reason: str | None = None
    # With compression: how its client asks, and the shortened context that it has; None for the client's own words.
    asked: Asked | None = field(default=None, repr=False)
    composition: Composition | None = field(default=None, repr=False)
    # What that took out of the prompt, estimated.
    saved_tokens: int | None = None
    # Whether the turn before had another context, so that this prompt is not what that one left in the cache.
    is_swap: bool = False
    # What serves it in place of the app, where the server has a tool of its own in the request; and the ids of the
    # results that were read by it.
    answering: Callable[[App], App] | None = field(default=None, repr=False)
    recalled: list[str] = field(default_factory=list)
    # Where prompts are computed ahead: the tokens, or the text, that the engine was given last.
    prompt: Sequence[int] | str | None = field(default=None, repr=False)
    # By engine request: one HTTP request may make several (samples, built-in tools), each counting from 0.
    _completion_tokens: dict[str, int] = field(default_factory=dict)
    # By engine request, prompt and cached tokens of those that were made for what the server's own tool answered.
    _again: dict[str, tuple[int, int]] = field(default_factory=dict)
    _is_again: bool = False

    @property
    def session_id(self) -> str:
        return self.turn.session_id

    @property
    def ttft_s(self) -> float | None:
        """Seconds from arrival to the first token, None before it."""
        return None if self.first_token_s is None else self.first_token_s - self.arrived_s

    @property
    def latency_s(self) -> float:
        """Seconds from arrival until now; meant for after the answer."""
        return self.clock.monotonic_s() - self.arrived_s

    @property
    def usage(self) -> TurnUsage | None:
        """The engine's counts, or None when it never answered."""
        if self.prompt_tokens is None:
            return None
        return TurnUsage(
            self.prompt_tokens,
            self.cached_tokens,
            sum(self._completion_tokens.values()),
            again_prompt_tokens=sum(prompt for prompt, _ in self._again.values()),
            again_cached_tokens=sum(cached for _, cached in self._again.values()),
        )

    def wire(self) -> dict[str, Any]:
        """The hints as they travel to the scheduler; session and turn are filled in where only we know them."""
        known = {"session": self.turn.session_id, "turn": self.turn.index, "parent": self.turn.parent_id}
        return {**{name: value for name, value in known.items() if value is not None}, **self.hints.to_wire()}

    def ask_again(self) -> None:
        """The engine is asked once more within this turn, with what the server's own tool answered."""
        self._is_again = True
        # What was forced is the turn's first answer.
        self.hints = replace(self.hints, forced=None)

    def observe(self, meta_info: Mapping[str, Any]) -> None:
        """Take in what the engine says with a piece of output (SGLang's ``meta_info``)."""
        if self.first_token_s is None and meta_info.get("completion_tokens", 0) > 0:
            self.first_token_s = self._first_token_s(meta_info)
        if self._is_again:
            if "prompt_tokens" in meta_info:
                counts = (meta_info["prompt_tokens"], meta_info.get("cached_tokens", 0))
                self._again.setdefault(meta_info.get("id", ""), counts)
        elif self.prompt_tokens is None and "prompt_tokens" in meta_info:
            self.prompt_tokens = meta_info["prompt_tokens"]
            self.cached_tokens = meta_info.get("cached_tokens", 0)
        if "queue_time" in meta_info:
            self.queue_s = meta_info["queue_time"]
        if "completion_tokens" in meta_info:
            self._completion_tokens[meta_info.get("id", "")] = meta_info["completion_tokens"]
        reason = meta_info.get("finish_reason")
        if isinstance(reason, Mapping):
            self.finish_reason = reason.get("type")

    def _first_token_s(self, meta_info: Mapping[str, Any]) -> float:
        # Without streaming the first output is the whole one; the engine's own time is right then, where it tells it.
        latency_s = meta_info.get("first_token_latency")
        return self.arrived_s + latency_s if latency_s is not None else self.clock.monotonic_s()
