"""The Responses and Messages APIs of the virtual model: who speaks is chosen for each turn, the rest is the engine's.

The answer goes to the client byte for byte. A turn whose engine is lost before its answer began is answered by the
other one; one that is lost in the middle is cut, as any server's would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web

from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.virtual_model.engine import Answer, EngineLost
from agentinfer.collab_lang.virtual_model.incoming import Incoming
from agentinfer.collab_lang.virtual_model.outgoing import turn_body
from agentinfer.collab_lang.virtual_model.proxy import answer_headers, turn_headers
from agentinfer.collab_lang.virtual_model.refusals import RefusedError
from agentinfer.collab_lang.virtual_model.turns import OpenTurn, Turns
from agentinfer.messages import Api, Conversation, Reply
from agentinfer.sessions import Outcome

OTHER_APIS: Final[dict[str, Api]] = {"/v1/responses": "responses", "/v1/messages": "anthropic"}
_MAX_KEPT_BYTES: Final = 16 << 20


class OtherDoor:
    """Answers turns of these APIs. The turn it is given is ended by it, one way or the other."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        # Which engine keeps a response that a later request goes on from.
        self._keepers: dict[str, Model] = {}

    def pinned(self, incoming: Incoming, conversation: Conversation) -> Model | None:
        """The model that must speak, since its engine holds the history that the request leaves out."""
        del incoming
        return self._keepers.get(conversation.previous_response_id or "")

    async def answer(self, request: web.Request, incoming: Incoming, turn: OpenTurn) -> web.StreamResponse:
        outcome: Outcome = "error"
        try:
            while True:
                engine = self._turns.engines[turn.choice.model]
                sent = orjson.dumps(turn_body(incoming.body, engine, turn.turn.session_id, turn.turn.parent_id))
                headers = turn_headers(request, engine, turn.session.routing)
                response: web.StreamResponse | None = None
                try:
                    async with engine.open("POST", request.path, sent, headers, is_turn=True) as answer:
                        response = web.StreamResponse(
                            status=answer.status, headers={**answer_headers(answer), **turn.headers()}
                        )
                        outcome = "client_gone"
                        await self._send_on(request, response, answer, turn, incoming.body)
                        outcome = "error"
                        return response
                except EngineLost as lost:
                    engine.doubt(str(lost))
                    if response is not None and response.prepared:
                        raise ConnectionResetError("the engine was lost in the middle of its answer") from lost
                    if not self._turns.move(turn, is_mid_reply=False):
                        raise RefusedError(503, f"neither model's engine answers: {lost}") from lost
        finally:
            # Ended already, unless the engine refused it or its answer broke off.
            self._turns.give_up(turn, outcome)

    async def _send_on(
        self,
        request: web.Request,
        response: web.StreamResponse,
        answer: Answer,
        turn: OpenTurn,
        body: Mapping[str, Any],
    ) -> None:
        api = OTHER_APIS[request.path]
        is_stream = answer.content_type.startswith("text/event-stream")
        kept = bytearray()
        last = b""
        await response.prepare(request)
        async for piece in answer.pieces():
            if len(kept) < _MAX_KEPT_BYTES:
                kept += piece
            # The last piece waits until the turn is ended, so that the client's next one finds it so.
            if last:
                await response.write(last)
            last = piece
        if answer.status == 200:
            reply = _read(api, bytes(kept), is_stream)
            if reply.response_id and api == "responses":
                self._keep(reply.response_id, turn.choice.model)
            self._turns.end(turn, _as_chat(turn, body), reply, None)
        await response.write(last)
        await response.write_eof()

    def _keep(self, response_id: str, model: Model) -> None:
        self._keepers[response_id] = model
        while len(self._keepers) > 1 << 14:
            del self._keepers[next(iter(self._keepers))]


def _read(api: Api, raw: bytes, is_stream: bool) -> Reply:
    if is_stream:
        return Reply.from_sse(api, raw)
    try:
        return Reply.from_json(api, orjson.loads(raw))
    except orjson.JSONDecodeError:
        return Reply()


def _as_chat(turn: OpenTurn, body: Mapping[str, Any]) -> dict[str, Any]:
    """The request as a chat, for what is asked between the turns."""
    chat: dict[str, Any] = {"messages": [message.as_openai() for message in turn.turn.conversation.messages]}
    given = body.get("tools")
    named = (tool for tool in (given if isinstance(given, list) else ()) if isinstance(tool, Mapping))
    tools = [_chat_tool(tool) for tool in named if tool.get("name")]
    return chat | ({"tools": tools} if tools else {})


def _chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    parameters = tool.get("parameters") or tool.get("input_schema") or {"type": "object", "properties": {}}
    function = {"name": tool["name"], "description": tool.get("description") or "", "parameters": parameters}
    return {"type": "function", "function": function}
