"""A chat completion by the virtual model: whichever engine speaks, one whole reply.

An engine that is lost before it said a word, or of whose streamed reply only text went out, is replaced by the other
one in the same turn; the client sees one reply, which says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
from aiohttp import web

from agentinfer.collab_lang.virtual_model.engine import Answer, Engine, EngineFailed, EngineLost
from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings
from agentinfer.collab_lang.virtual_model.incoming import Incoming
from agentinfer.collab_lang.virtual_model.outgoing import can_be_continued, continued, turn_body
from agentinfer.collab_lang.virtual_model.proxy import turn_headers
from agentinfer.collab_lang.virtual_model.refusals import error_object
from agentinfer.collab_lang.virtual_model.reply_stream import ReplyStream, usage_of
from agentinfer.collab_lang.virtual_model.turns import OpenTurn, Turns
from agentinfer.messages import Reply
from agentinfer.messages.sse import EventDecoder

logger = logging.getLogger(__name__)

CHAT_PATH = "/v1/chat/completions"
# The rest of a stream after its last event is only its end.
_END_S = 1.0
_NEITHER = "neither model's engine answers; the session is as it was, so the same request can be sent again"


class ChatDoor:
    """Answers chats. The turn it is given is ended by it, one way or the other."""

    def __init__(self, turns: Turns, settings: FrontSettings) -> None:
        self._turns = turns
        self._settings = settings

    async def answer(self, request: web.Request, incoming: Incoming, turn: OpenTurn) -> web.StreamResponse:
        stream = _Streaming(request, incoming, turn, self._settings) if incoming.body.get("stream") else None
        try:
            if stream is not None:
                return await self._stream(stream, incoming, turn)
            return await self._whole(request, incoming, turn)
        finally:
            # Ended already, unless the client left or an engine's refusal was passed on.
            was_cut = stream is not None and stream.response is not None
            self._turns.give_up(
                turn, "client_gone" if was_cut or _is_cancelled() else "error", stream.reply.reply() if stream else None
            )

    async def _whole(self, request: web.Request, incoming: Incoming, turn: OpenTurn) -> web.Response:
        failure: web.Response | None = None
        while True:
            engine = self._turns.engines[turn.choice.model]
            sent = orjson.dumps(_sent(incoming, engine, turn))
            headers = turn_headers(request, engine, turn.session.routing)
            try:
                async with engine.open("POST", CHAT_PATH, sent, headers, is_turn=True) as answer:
                    raw = await answer.read()
                if answer.status == 200:
                    body = _object(raw)
                    reply = Reply.from_json("chat", body)
                    _check_end(reply)
                    return self._whole_reply(incoming, turn, body, reply)
                failure = _passed_on(answer, raw, turn)
                if not answer.is_failure:
                    return failure
                logger.warning("the %s model's engine fails with %d: %.300s", engine.role, answer.status, raw)
            except EngineLost as lost:
                engine.doubt(str(lost))
            except EngineFailed as failed:
                failure = _told(failed)
            if not self._turns.move(turn, is_mid_reply=False):
                return failure or _unavailable()

    def _whole_reply(self, incoming: Incoming, turn: OpenTurn, body: dict[str, Any], reply: Reply) -> web.Response:
        self._turns.end(turn, incoming.body, reply, usage_of(body))
        body |= {"model": self._settings.name, "agentinfer": {**(body.get("agentinfer") or {}), **turn.about()}}
        return web.Response(body=orjson.dumps(body), content_type="application/json", headers=turn.headers())

    async def _stream(self, stream: _Streaming, incoming: Incoming, turn: OpenTurn) -> web.StreamResponse:
        failure: web.Response | None = None
        while True:
            engine = self._turns.engines[turn.choice.model]
            sent = _sent(incoming, engine, turn)
            headers = turn_headers(stream.request, engine, turn.session.routing)
            body = orjson.dumps(continued(sent, stream.reply.sent_text, stream.reply.num_sent_pieces))
            try:
                async with engine.open("POST", CHAT_PATH, body, headers, is_turn=True) as answer:
                    if answer.status == 200:
                        await stream.follow(answer)
                        reply = stream.reply.reply()
                        _check_end(reply)
                        self._turns.end(turn, incoming.body, reply, stream.reply.usage())
                        return await stream.finish(answer)
                    failure = _passed_on(answer, await answer.read(), turn)
                    if not answer.is_failure:
                        return await stream.refused(failure)
            except EngineLost as lost:
                engine.doubt(str(lost))
            except EngineFailed as failed:
                failure = _told(failed)
                if failed.status < 500:
                    return await stream.refused(failure)
            is_mid_reply = stream.reply.num_sent_pieces > 0
            can_move = not is_mid_reply or can_be_continued(incoming.body)
            if not self._turns.move(turn, is_mid_reply) or not can_move:
                return await stream.refused(failure or _unavailable())
            stream.reply.resume()


class _Streaming:
    """The client's end of a streamed reply."""

    def __init__(self, request: web.Request, incoming: Incoming, turn: OpenTurn, settings: FrontSettings) -> None:
        options = incoming.body.get("stream_options")
        wants_usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
        self.reply = ReplyStream(settings.name, wants_usage)
        self.response: web.StreamResponse | None = None
        self.request = request
        self._turn = turn

    async def follow(self, answer: Answer) -> None:
        """Sends on what the engine says, to the end of its stream. Raises EngineLost where that does not come."""
        if self.response is None:
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **self._turn.headers()}
            self.response = web.StreamResponse(headers=headers)
            await self.response.prepare(self.request)
        decoder = EventDecoder()
        async for piece in answer.pieces():
            events = decoder.feed(piece)
            end = next((at for at, event in enumerate(events) if event == b"[DONE]" or _is_error(event)), len(events))
            out = b"".join(_event(each) for event in events[:end] for each in self.reply.take(_object(event)))
            if out:
                await self.response.write(out)
            if end < len(events):
                if events[end] == b"[DONE]":
                    return
                raise _failed(_object(events[end])["error"])
        raise EngineLost("its stream ended before [DONE]")

    async def finish(self, answer: Answer) -> web.StreamResponse:
        """Sends what was held, and reads the stream's end: an engine takes a connection cut there for a lost client."""
        assert self.response is not None
        rest = b"".join(_event(chunk) for chunk in self.reply.rest(self._turn.about()))
        await self.response.write(rest + b"data: [DONE]\n\n")
        await self.response.write_eof()
        with suppress(EngineLost, TimeoutError):
            async with asyncio.timeout(_END_S):
                await answer.read()
        return self.response

    async def refused(self, failure: web.Response) -> web.StreamResponse:
        """The answer where none came: the failure itself, or in a stream that has begun, an event that tells it."""
        if self.response is None:
            return failure
        told = error_object(failure.status, f"the reply broke off: {_message(failure)}")
        await self.response.write(b"data: " + orjson.dumps({"error": told}) + b"\n\ndata: [DONE]\n\n")
        await self.response.write_eof()
        return self.response


def _sent(incoming: Incoming, engine: Engine, turn: OpenTurn) -> dict[str, Any]:
    return turn_body(incoming.body, engine, turn.turn.session_id, turn.turn.parent_id)


def _object(raw: bytes) -> dict[str, Any]:
    """Raises EngineFailed where an engine says what no OpenAI server does."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise EngineFailed(502, f"the engine's answer is no JSON object: {raw[:200].decode(errors='replace')}")
    return found


def _is_error(event: bytes) -> bool:
    return b'"error"' in event and "error" in _object(event)


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _passed_on(answer: Answer, raw: bytes, turn: OpenTurn) -> web.Response:
    headers = {**turn.headers(), "Content-Type": answer.content_type}
    return web.Response(status=answer.status, body=raw, headers=headers)


def _check_end(reply: Reply) -> None:
    """Raises EngineFailed for a reply that the engine broke off, as one does that is shut down."""
    if reply.finish_reason == "abort":
        raise EngineFailed(503, "the engine broke the reply off")


def _failed(error: object) -> EngineFailed:
    told = error if isinstance(error, Mapping) else {}
    code = told.get("code")
    return EngineFailed(code if isinstance(code, int) else 500, str(told.get("message") or error)[:1000])


def _told(failed: EngineFailed) -> web.Response:
    raw = orjson.dumps(error_object(failed.status, str(failed)))
    return web.Response(status=failed.status, body=raw, content_type="application/json")


def _unavailable() -> web.Response:
    return web.Response(status=503, body=orjson.dumps(error_object(503, _NEITHER)), content_type="application/json")


def _message(failure: web.Response) -> str:
    with suppress(orjson.JSONDecodeError, TypeError, AttributeError):
        return str(orjson.loads(failure.body)["message"])  # type: ignore[arg-type]
    return f"HTTP {failure.status}"


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
