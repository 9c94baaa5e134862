"""One model's steps on a real engine: its most likely reply among those a task allows, and its check of that reply."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import aiohttp

from agentinfer.collab_lang.check_request import check_body, read_answer
from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.settings import Check, CollabSettings
from benchmarks.collab.episode import Said, choices, is_progress, messages
from benchmarks.collab.tasks import Task
from benchmarks.collab.tree import Node, Step

Encode = Callable[[str], list[int]]
# The tasks are too short for blocks of reasons by models of this size; the verdict is the probability of one word.
CHECK: Final = CollabSettings(check=Check.VERDICT)


class Engine:
    """The chat is sent as an agent's, for its prompt; replies are then compared as continuations of that prompt.

    Whole replies are scored, since a grammar that only filters tokens prefers those that begin likely.
    """

    def __init__(
        self, http: aiohttp.ClientSession, url: str, model: str, examples: Sequence[Task], encode: Encode
    ) -> None:
        """`encode`: text to the model's tokens, without any that begin or end one."""
        self.url = url
        self.model = model
        self._http = http
        self._examples = examples
        self._encode = encode

    async def step(self, task: Task, said: Said) -> Step:
        """The greedy step and its check. Raises RuntimeError where the engine refuses."""
        chat = messages(task, said, self._examples)
        prompt = await self._prompt(chat)
        possible = choices(task, said)
        replies = [self._encode(fact.text) for fact in possible]
        shares = normalised(await self._logprobs(prompt, replies))
        choice = max(range(len(possible)), key=shares.__getitem__)
        reply = {"role": "assistant", "content": possible[choice].text}
        checked = await self._post("/v1/chat/completions", check_body(chat, reply, CHECK) | {"model": self.model})
        judgement = read_answer(checked, CHECK)
        answers = sum(share for share, fact in zip(shares, possible, strict=True) if fact.is_answer)
        right = sum(share for share, fact in zip(shares, possible, strict=True) if fact == task.path[-1])
        return Step(
            choice=choice,
            probability=round(shares[choice], 5),
            p_answer=round(right / answers, 5) if right else 0.0,
            p_true=None if judgement is None or judgement.p_true is None else round(judgement.p_true, 5),
            is_progress=is_progress(task, said, possible[choice]),
            prompt_tokens=len(prompt),
            reply_tokens=len(replies[choice]),
            check_tokens=checked["usage"]["prompt_tokens"] - len(prompt) - len(replies[choice]),
        )

    async def shared_tokens(self, tasks: Sequence[Task]) -> int:
        """The tokens that the prompts of different tasks have in common: in the cache before a task begins."""
        first, second = [await self._prompt(messages(task, (), self._examples)) for task in tasks[:2]]
        return next(index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])

    async def generate(self, prompt: Sequence[int], new_tokens: int) -> None:
        """Greedy, to the length given."""
        sampling = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
        await self._post("/generate", {"input_ids": list(prompt), "sampling_params": sampling})

    async def _prompt(self, chat: Sequence[Mapping[str, Any]]) -> list[int]:
        asked = {"model": self.model, "messages": chat, "max_tokens": 1, "temperature": 0}
        found = await self._post("/v1/chat/completions", asked | {"return_prompt_token_ids": True})
        return list(found["choices"][0]["prompt_token_ids"])

    async def _logprobs(self, prompt: list[int], replies: Sequence[list[int]]) -> list[float]:
        body = {
            "input_ids": [prompt + reply for reply in replies],
            "sampling_params": {"max_new_tokens": 0, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": len(prompt) - 1,
        }
        found = await self._post("/generate", body)
        rows = [each["meta_info"]["input_token_logprobs"][1:] for each in found]
        for row, reply in zip(rows, replies, strict=True):
            if [token for _, token, _ in row] != reply:
                raise RuntimeError(f"{self.model}: the engine scored other tokens than the reply's {len(reply)}")
        return [sum(logprob for logprob, _, _ in row) for row in rows]

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        async with self._http.post(self.url + path, json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"{self.model}: {path}: status {response.status}: {(await response.text())[:300]}")
            return await response.json()


async def steps_of_both(engines: Mapping[Model, Engine], task: Task, said: Said) -> Node:
    found = await asyncio.gather(*(engines[model].step(task, said) for model in Model))
    return dict(zip(Model, found, strict=True))


def normalised(logprobs: Sequence[float]) -> list[float]:
    """Probabilities that sum to 1."""
    most = max(logprobs)
    weights = [math.exp(each - most) for each in logprobs]
    return [each / sum(weights) for each in weights]
