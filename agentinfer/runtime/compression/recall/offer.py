"""`recall` for all sessions: who is offered it, what its calls are answered, what is put back into later prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentinfer.compress.composition import Composition
from agentinfer.compress.hidden import Exchange, Exchanges
from agentinfer.compress.recall import asked_id, found, offering, recalled
from agentinfer.compress.sizes import Sizes
from agentinfer.messages.content import chat_message
from agentinfer.metrics import CompressionMetrics
from agentinfer.runtime.compression.door import Asked
from agentinfer.runtime.compression.recall.turn import RecallingTurn
from agentinfer.runtime.exchange import App
from agentinfer.runtime.turns import FollowedTurn


class Recall:
    """Lives on the HTTP server's event loop; not thread-safe. `max_bytes`: for what is put back, of all sessions."""

    def __init__(self, max_bytes: int, metrics: CompressionMetrics) -> None:
        self._exchanges = Exchanges(max_bytes)
        self._metrics = metrics
        self._answers: Counter[str] = Counter()

    def asked(self, asked: Asked) -> Asked:
        """A client's request, without its messages, as it is asked with a composed context."""
        return replace(asked, fields=offering(asked.fields))

    def sent(self, composition: Composition, messages: Sequence[Any], chain: Sequence[bytes]) -> list[Any]:
        """A client's history as the engine gets it; see `Exchanges.sent`."""
        return self._exchanges.sent(composition, messages, chain)

    def hidden_tokens(self, composition: Composition, chain: Sequence[bytes], sizes: Sizes) -> int:
        """What `sent` adds to the client's messages, estimated."""
        return sizes.messages(map(chat_message, self._exchanges.hidden(composition, chain)))

    def offered(
        self, followed: FollowedTurn, composition: Composition, request: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The composed `request` of a turn with the tool in it, where that is to be; its calls are then answered."""
        with_tool = offering(request)
        if with_tool is request:
            return request
        session_id, history = followed.session_id, followed.conversation.chain[-1]

        def answer(arguments: str) -> str:
            self._note(followed, composition, arguments)
            return recalled(composition.taken, arguments)

        def keep(exchange: Exchange) -> None:
            self._exchanges.put(session_id, history, exchange)

        def answering(app: App) -> App:
            return RecallingTurn(app, request, answer, keep, followed.ask_again)

        followed.answering = answering
        return with_tool

    def forget_session(self, session_id: str) -> None:
        """No further turn of the session is expected."""
        self._exchanges.forget_session(session_id)

    def status(self) -> dict[str, int]:
        """Counts since the start, and how many turns' exchanges are kept."""
        return {"answered": self._answers["found"], "refused": self._answers["refused"], "kept": len(self._exchanges)}

    def _note(self, followed: FollowedTurn, composition: Composition, arguments: str) -> None:
        try:
            observation = asked_id(arguments)
            found(composition.taken, observation)
        except (KeyError, ValueError):
            outcome = "refused"
        else:
            outcome = "found"
            followed.recalled.append(observation)
        self._answers[outcome] += 1
        self._metrics.recall(outcome)
