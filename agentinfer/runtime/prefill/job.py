"""One prompt computed ahead: made from what was asked for, looked up, and computed piece by piece.

What a session's last job or turn left in the cache is not stepped through piece by piece, but in longer steps: were it
evicted meanwhile, one of these would be computed at once, and not the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentinfer.clock import Clock
from agentinfer.runtime.exchange import App, Scope
from agentinfer.runtime.prefill.door import Asked, DoorError, PromptDoor, chat_scope
from agentinfer.runtime.prefill.engine import IDENTITY, Prompt, compute
from agentinfer.runtime.prefill.warming import SLACK_TOKENS, Pace, Stride, Warmed, common_length, warm
from agentinfer.runtime.prefill.wish import Wish
from agentinfer.runtime.refusals import RefusedRequest

# What should be in the cache is looked at in steps of so many pieces.
LOOK_PIECES: Final = 8
# A piece that is not computed so long after its job was ended waits for its turn in the scheduler, and is taken back.
GIVE_UP_S: Final = 1.0

Piece = Callable[[int], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What came of a job. `cached_tokens` of the prompt were found in the cache, `computed_tokens` were not; together
    they are less than `prompt_tokens` where the job ended early. `ended` says how: `completed`, `superseded` (by a
    newer one of the session), `cancelled`, `client_gone`, `turn` (the session's own turn began), or `no_room`.
    """

    session: str
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    seconds: float
    completed: bool
    ended: str


@dataclass(slots=True)
class Job:
    """One request on its way. `task` ends with a `Prefilled` or raises RefusedRequest; `work` is what of it can be
    cancelled, which `stop` does. The first `done_tokens` of the prompt are in the cache."""

    session_id: str
    wish: Wish = field(repr=False)
    scope: Scope = field(repr=False)
    ended: str = "completed"
    prompt_tokens: int = 0
    done_tokens: int = 0
    computed_tokens: int = 0
    task: asyncio.Task[Prefilled] = field(init=False, repr=False)
    work: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def ahead_id(self) -> str:
        """What the scheduler calls the session whose KV is computed ahead."""
        return ahead_id(self.session_id)

    def stop(self, ended: str) -> None:
        """Ends the job after the piece that is in the engine; nothing where it has ended."""
        if self.ended == "completed":
            self.ended = ended
            if self.work is not None:
                self.work.cancel()


def ahead_id(session_id: str) -> str:
    """What the scheduler calls the session whose KV is computed ahead for `session_id`."""
    return f"{session_id}~ahead"


class Computer:
    """Lives on the HTTP server's event loop; not thread-safe."""

    def __init__(self, pace: Pace, manager: Any, clock: Clock) -> None:
        """`manager` is SGLang's tokenizer manager."""
        self._pace = pace
        self._manager = manager
        self._clock = clock
        self._stride = Stride()
        self._door: PromptDoor | None = None

    def serve_through(self, app: App) -> None:
        """`app` is what our middleware wraps; before the first request."""
        self._door = PromptDoor(app)

    async def prompt(self, job: Job) -> Prompt:
        """What the job is to compute. Raises RefusedRequest."""
        wish = job.wish
        if wish.source == "messages":
            prompt = await self._chat_prompt(wish, job.scope)
        else:
            ids = wish.prompt if wish.source == "input_ids" else self.encoded(wish.prompt)
            identity = {name: wish.body[name] for name in IDENTITY if wish.body.get(name) is not None}
            prompt = Prompt(tuple(ids), identity, self._manager)
        self._check(prompt.ids, wish.source)
        return prompt

    async def compute(self, job: Job, prompt: Prompt, known: Sequence[int]) -> None:
        """Puts the prompt's KV into the cache; `known` are the tokens that the session had put there last.

        Raises WarmingError, and RefusedRequest for what the engine refuses.
        """
        ids = prompt.ids

        async def piece(num_tokens: int) -> int:
            return await self._piece(job, prompt, num_tokens)

        try:
            found = await self._found(common_length(ids, known), piece)
            await warm(ids, Warmed(ids[:found]), self._pace, self._stride, piece)
        except ValueError as error:
            raise RefusedRequest(400, f"{job.wish.source}: the engine refused it: {error}", job.wish.source) from None

    async def _piece(self, job: Job, prompt: Prompt, num_tokens: int) -> int:
        # One piece at a time is in the engine, so one that is being computed is waited for even by who gives up.
        running = asyncio.ensure_future(compute(prompt, num_tokens, job.ahead_id, self._clock.monotonic_s()))
        try:
            await asyncio.wait((running,))
        finally:
            if not running.done() and not (await asyncio.wait((running,), timeout=GIVE_UP_S))[0]:
                running.cancel()
                await asyncio.wait((running,))
            if not running.cancelled() and running.exception() is None:
                job.computed_tokens += running.result()
                job.done_tokens = num_tokens
        return running.result()

    async def _found(self, known_tokens: int, piece: Piece) -> int:
        """How many of the known tokens are in the cache; where some were evicted, the end of the step that computed
        them."""
        done = 0
        while done < known_tokens:
            end = min(known_tokens, done + LOOK_PIECES * self._stride.num_tokens)
            computed, _ = await self._pace.run(lambda end=end: piece(end))  # type: ignore[misc]
            done = end
            if computed > SLACK_TOKENS:
                break
        return done

    def encoded(self, text: str) -> Sequence[int]:
        """The tokens of a text, as `/generate` would make them. Raises RefusedRequest where there is no tokenizer."""
        if self._manager.tokenizer is None:
            raise RefusedRequest(400, "text: the server runs without a tokenizer, send input_ids", "text")
        ids: Sequence[int] = self._manager.tokenizer.encode(text)
        return ids

    async def _chat_prompt(self, wish: Wish, scope: Scope) -> Prompt:
        assert self._door is not None, "a request before the server started up"
        asked = Asked.of(chat_scope(scope), wish.body)
        try:
            return await (self._door.exact if wish.is_exact else self._door.prompt)(asked, wish.prompt)
        except DoorError as error:
            raise RefusedRequest(400 if error.status < 500 else 500, f"messages: {error}", "messages") from None

    def _check(self, ids: Sequence[int], source: str) -> None:
        room, vocab_size = self._manager.max_req_input_len, self._manager.model_config.vocab_size
        problem = None
        if len(ids) >= room:
            problem = f"expected less than {room} tokens, for which the engine has room, got {len(ids)}"
        elif max(ids, default=0) >= vocab_size:
            problem = f"expected token ids below {vocab_size}, the vocabulary's size, got {max(ids)}"
        if problem is not None:
            raise RefusedRequest(400, f"{source}: {problem}", source)
