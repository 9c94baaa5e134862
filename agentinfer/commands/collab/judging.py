"""Having a running engine check recorded steps, several at a time, as it would check them live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from agentinfer.collab_lang.check_request import check_body, read_answer
from agentinfer.collab_lang.settings import CollabSettings
from agentinfer.errors import AgentInferError
from agentinfer.replay.client import get_json
from agentinfer.replay.session import Session, Turn


class JudgingError(AgentInferError):
    """No engine, one that refuses every check, or one whose answers hold no probability."""


@dataclass(frozen=True, slots=True)
class Step:
    """A recorded step, and the tools that its session had."""

    session: Session
    turn: Turn


@dataclass(frozen=True, slots=True)
class JudgedStep:
    """What the check of a step said; `p_true` is against FALSE."""

    session: str
    turn: int
    p_true: float
    is_progress: bool


@dataclass(slots=True)
class Judged:
    """The steps with a verdict, in the trace's order, and how many have none: an answer without one, or a refusal."""

    steps: list[JudgedStep] = field(default_factory=list)
    unreadable: int = 0
    refused: int = 0
    first_refusal: str = ""

    @property
    def done(self) -> int:
        return len(self.steps) + self.unreadable + self.refused


def steps_of(sessions: Sequence[Session], most: int | None) -> list[Step]:
    """The steps to judge: all but each session's last, after which nobody speaks; at most `most`, spread evenly."""
    steps = [Step(session, turn) for session in sessions for turn in session.turns[:-1]]
    if most is None or most >= len(steps):
        return steps
    return [steps[place * len(steps) // most] for place in range(most)]


async def find_model(http: aiohttp.ClientSession, base_url: str, model: str | None) -> str:
    """The name of the model to ask: `model`, or the only one. Raises JudgingError where the engine has it not."""
    listed = await get_json(http, base_url + "/v1/models")
    if listed is None:
        raise JudgingError(
            f"{base_url}/v1/models does not answer as an OpenAI server does; is the engine up, and the key right "
            "(--api-key)? Start one: python -m agentinfer.launch_server"
        )
    names = [str(card.get("id")) for card in listed.get("data") or () if isinstance(card, dict)]
    if model in names or (model is None and len(names) == 1):
        return model or names[0]
    raise JudgingError(f"{base_url} serves {', '.join(names) or 'no model'}; name one of them with --model")


class Judge:
    """Checks steps on one engine, at most `parallel` at a time; `told` hears after each."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        base_url: str,
        model: str,
        settings: CollabSettings,
        parallel: int,
        timeout_s: float,
        told: Callable[[Judged], None] = lambda _: None,
    ) -> None:
        self._http = http
        self._url = base_url + "/v1/chat/completions"
        self._model = model
        self._settings = settings
        self._parallel = parallel
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(10.0, timeout_s))
        self._told = told

    async def judge(self, steps: Sequence[Step]) -> Judged:
        """The steps of a session one after another, so that each finds the prompt of the one before in the cache.

        Raises JudgingError where the engine goes away or its answers hold no log-probabilities; steps that it refuses,
        being too long for it, are counted.
        """
        judged = Judged()
        waiting: dict[str, list[Step]] = {}
        for step in steps:
            waiting.setdefault(step.session.id, []).append(step)
        queue = iter(waiting.values())

        async def work() -> None:
            for session_steps in queue:
                for step in session_steps:
                    await self._judge_one(step, judged)
                    self._told(judged)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._parallel):
                    group.create_task(work())
        except* JudgingError as errors:
            raise errors.exceptions[0] from None
        order = {(step.session.id, step.turn.index): place for place, step in enumerate(steps)}
        judged.steps.sort(key=lambda each: order[each.session, each.turn])
        return judged

    async def _judge_one(self, step: Step, judged: Judged) -> None:
        body = check_body(step.turn.prompt, step.turn.reply, self._settings, step.session.tool_schemas)
        answer = await self._ask({**body, "model": self._model})
        if isinstance(answer, str):
            judged.refused += 1
            judged.first_refusal = judged.first_refusal or answer
            return
        judgement = read_answer(answer, self._settings)
        if judgement is None:
            judged.unreadable += 1
            return
        if judgement.p_true is None:
            raise JudgingError(
                f"{self._url} answers without the log-probabilities that were asked for (top_logprobs), and without "
                "them there is nothing to set a threshold to; ask an SGLang engine itself"
            )
        judged.steps.append(JudgedStep(step.session.id, step.turn.index, judgement.p_true, judgement.is_progress))

    async def _ask(self, body: dict[str, Any]) -> object:
        """The answer's JSON, or in words why the engine gave none to this step."""
        data = orjson.dumps(body)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._http.post(self._url, data=data, headers=headers, timeout=self._timeout) as response:
                raw = await response.read()
        except TimeoutError:
            return f"no answer within {self._timeout.total:g} s"
        except aiohttp.ClientError as error:
            raise JudgingError(f"{self._url}: the engine went away: {error or type(error).__name__}") from None
        if response.status in (401, 403, 404):
            raise JudgingError(f"{self._url}: HTTP {response.status}: {_said(raw)}")
        if response.status != 200:
            return f"HTTP {response.status}: {_said(raw)}"
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            return f"no JSON: {_said(raw)}"


def _said(raw: bytes) -> str:
    return " ".join(raw[:300].decode(errors="replace").split()) or "no reason given"
