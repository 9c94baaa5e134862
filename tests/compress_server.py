"""A server in this process whose app is a few lines: our middleware with compression on, and sessions of one client."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from agentinfer.clock import SystemClock
from agentinfer.compress.distiller import Assignment
from agentinfer.compress.model_distiller import Counts
from agentinfer.compress.note import Line, Note
from agentinfer.compress.settings import Settings
from agentinfer.compress.store import CompositionStore
from agentinfer.metrics import CompressionMetrics, Metrics
from agentinfer.runtime.compression import jobs
from agentinfer.runtime.compression.recall.offer import Recall
from agentinfer.runtime.compression.service import CompressionService
from agentinfer.runtime.follower import EngineFacts, TurnFollower
from agentinfer.runtime.http import FollowTurns
from agentinfer.runtime.prefill.engine import Prompt, wanted_prompt
from agentinfer.runtime.prefill.warming import Pace
from agentinfer.runtime.turns import current_turn
from agentinfer.sessions import SessionTable
from tests.agent_sessions import SYSTEM, assistant, call, tool, user

CHAT = "/v1/chat/completions"


class Noting:
    """A distiller of one line a result, or whatever `does`."""

    def __init__(self, does: Callable[[Assignment], Awaitable[Note]] | None = None) -> None:
        self._does = does

    async def distil(self, assignment: Assignment) -> Note:
        if self._does is not None:
            return await self._does(assignment)
        return Note(facts=tuple(Line(f"fact {each.index}", each.index) for each in assignment.observations))


class Server:
    """The middleware with compression on, around an app that keeps what it got; `computed` are the pieces.

    The app calls a tool at each turn, or says what is next in `replies`. `warmed` are the requests that were asked for
    their prompt, `answers` what the client got.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, distiller: Noting | None = None, recall: bool = False, **settings: Any
    ) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.computed: list[int] = []
        self.warmed: list[dict[str, Any]] = []
        self.replies: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        clock = SystemClock()
        small = {"threshold_tokens": 100, "keep_recent_steps": 1, "warm_share": 0.5}
        self.compression = CompressionService(
            Settings(**{**small, **settings}),
            CompositionStore(1 << 20),
            lambda door, asked: distiller or Noting(),
            clock,
            pace := Pace(clock),
            metrics := CompressionMetrics(CollectorRegistry()),
            Counts(),
            recall=Recall(1 << 20, metrics) if recall else None,
        )
        self.table = SessionTable(10, 60, clock, lambda: "s", on_gone=lambda gone: self.follower.session_gone(gone))
        facts = EngineFacts("m", "cpu", 1)
        self.follower = TurnFollower(
            self.table, clock, Metrics(CollectorRegistry()), facts, about={}, compression=self.compression, pace=pace
        )
        self.refused: list[Exception] = []
        self.middleware = FollowTurns(self.app, lambda: self.follower, lambda: True, None, self.refused.append)
        self.middleware._follower = self.follower
        self.compression.serve_through(self.app)
        self.messages = [SYSTEM, user("Find it.")]

        async def compute(prompt: Prompt, num_tokens: int, session_id: str, now_s: float) -> int:
            self.computed.append(num_tokens)
            return 1

        monkeypatch.setattr(jobs, "compute", compute)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = json.loads(message["body"])
        wanted = wanted_prompt.get()
        if wanted is not None:
            self.warmed.append(body)
            wanted.prompt = Prompt(tuple(json.dumps(body["messages"]).encode()), {}, None)
            status, answer = 400, {"error": "only the prompt"}
        else:
            self.got.append(({name.decode(): value.decode() for name, value in scope["headers"]}, message["body"]))
            followed = current_turn.get()
            assert followed is not None
            num_tokens = sum(len(str(each.get("content"))) for each in body["messages"]) // 4
            counts = {"prompt_tokens": num_tokens, "completion_tokens": 1}
            followed.observe({**counts, "cached_tokens": 0, "id": f"r{len(self.got)}"})
            called = assistant("", call(f"call_{len(self.messages)}", "look"))
            reply = self.replies.pop(0) if self.replies else called
            choice = {"message": reply, "finish_reason": "tool_calls" if reply.get("tool_calls") else "stop"}
            status, answer = 200, {"choices": [choice], "usage": {**counts, "total_tokens": num_tokens + 1}}
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
        )
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def turn(self, **fields: Any) -> bytes:
        """One turn of the session; the body that its client sent. Its tool has answered when this returns."""
        raw = json.dumps({"messages": self.messages, "agentinfer": {"session": "s"}, **fields}).encode()
        incoming = [{"type": "http.request", "body": raw, "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-length", str(len(raw)).encode()), (b"authorization", b"Bearer of it")]
        await self.middleware({"type": "http", "method": "POST", "path": CHAT, "headers": headers}, receive, send)
        assert sent[0]["status"] == 200
        self.answers.append(json.loads(b"".join(each["body"] for each in sent[1:])))
        reply = self.answers[-1]["choices"][0]["message"]
        found = f"{len(self.messages)} " * 400
        self.messages += [reply, *(tool(each["id"], found) for each in reply.get("tool_calls") or ())]
        return raw

    async def settle(self) -> None:
        """Until what runs beside the turns has ended."""
        await self.compression.settled()

    async def turns(self, count: int) -> list[bytes]:
        sent = []
        for _ in range(count):
            sent.append(await self.turn())
            await self.settle()
        return sent

    @property
    def jobs(self) -> dict[str, int]:
        ends: dict[str, int] = self.compression.status()["jobs"]
        return ends
