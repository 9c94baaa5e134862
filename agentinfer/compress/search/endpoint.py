"""Scorers on another server, found by its base URL: SGLang's scoring route, and any OpenAI completions route."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson

from agentinfer.compress.search.scoring import LABELS, ScorerError, checked, label_ids, prompt_head, prompt_item
from agentinfer.compress.search.scoring import yes_probability as probability

DEFAULT_TIMEOUT_S = 10.0
# The most that OpenAI's completions route gives.
_TOP_LOGPROBS = 5


class _Endpoint:
    """POSTs of JSON, each within `timeout_s`; a connection lasts for one ranking, so no event loop owns it."""

    def __init__(self, base_url: str, timeout_s: float, api_key: str | None) -> None:
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json"} | (
            {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        )

    async def post(self, http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer's object. Raises ScorerError."""
        url = self.url + path
        try:
            async with http.post(url, data=orjson.dumps(body), headers=self._headers) as response:
                raw = await response.read()
                if response.status != 200:
                    raise ScorerError(f"{url} answered HTTP {response.status}: {raw[:200].decode(errors='replace')}")
                answer = orjson.loads(raw)
        except TimeoutError:
            raise ScorerError(f"{url} gave no answer within {self._timeout_s:g} s") from None
        except orjson.JSONDecodeError as error:
            raise ScorerError(f"{url} answered no JSON: {error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ScorerError(f"{url}: {type(error).__name__}: {error}") from None
        if not isinstance(answer, dict):
            raise ScorerError(f"{url} answered {type(answer).__name__}, expected an object")
        return answer

    def session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s))


class SGLangScorer:
    """SGLang's `/v1/score`: exact probabilities of the two answers, nothing is generated."""

    def __init__(
        self,
        base_url: str,
        model: str = "default",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        api_key: str | None = None,
    ) -> None:
        """`base_url` with or without ``/v1``. Its label tokens are looked up at the first call."""
        self._endpoint = _Endpoint(base_url, timeout_s, api_key)
        self._model = model
        self._labels: tuple[int, int] | None = None

    async def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        async with self._endpoint.session() as http:
            if self._labels is None:
                self._labels = await self._find_labels(http)
            body = {
                "model": self._model,
                "query": prompt_head(query),
                "items": [prompt_item(text) for text in texts],
                "label_token_ids": list(self._labels),
                "apply_softmax": True,
            }
            answer = await self._endpoint.post(http, "/v1/score", body)
        try:
            return checked([row[0] for row in answer["scores"]], len(texts))
        except (KeyError, TypeError, IndexError):
            raise ScorerError(f"{self._endpoint.url}/v1/score answered without scores: {sorted(answer)}") from None

    async def _find_labels(self, http: aiohttp.ClientSession) -> tuple[int, int]:
        words = [word for pair in LABELS for word in pair]
        body = {"model": self._model, "prompt": words, "add_special_tokens": False}
        answer = await self._endpoint.post(http, "/tokenize", body)
        tokens = answer.get("tokens")
        if not isinstance(tokens, list) or len(tokens) != len(words):
            raise ScorerError(f"{self._endpoint.url}/tokenize answered without the tokens of {len(words)} texts")
        return label_ids(dict(zip(words, tokens, strict=True)).__getitem__)


class CompletionsScorer:
    """Any OpenAI `/v1/completions` that takes a list of prompts: one token each, read from its top log-probabilities.

    An answer that is not listed counts with the least listed probability, the most that it can have. Needs a model with
    that route; chat routes take one conversation a call.
    """

    def __init__(
        self, base_url: str, model: str, timeout_s: float = DEFAULT_TIMEOUT_S, api_key: str | None = None
    ) -> None:
        self._endpoint = _Endpoint(base_url, timeout_s, api_key)
        self._model = model

    async def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        head = prompt_head(query)
        body = {
            "model": self._model,
            "prompt": [head + prompt_item(text) for text in texts],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": _TOP_LOGPROBS,
        }
        async with self._endpoint.session() as http:
            answer = await self._endpoint.post(http, "/v1/completions", body)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            listed = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
            return checked([_from_listed(each) for each in listed], len(texts))
        except (KeyError, TypeError, IndexError, AttributeError, ValueError):
            url = f"{self._endpoint.url}/v1/completions"
            raise ScorerError(f"{url} answered without the log-probabilities that were asked for") from None


def _from_listed(listed: dict[str, float]) -> float:
    """P(yes) from the log-probabilities of the likeliest tokens. Raises ScorerError where neither answer is there."""
    mass = {"yes": 0.0, "no": 0.0}
    for token, logprob in listed.items():
        word = token.strip().lower()
        if word in mass:
            mass[word] += math.exp(logprob)
    if not any(mass.values()):
        raise ScorerError(f"the model's likeliest answers are {sorted(listed)}, neither yes nor no")
    least = min(math.exp(logprob) for logprob in listed.values())
    yes, no = (mass[word] or least for word in ("yes", "no"))
    return probability(math.log(yes), math.log(no)) if yes and no else float(yes > 0.0)
