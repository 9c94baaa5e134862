"""One engine of the pair: what it is asked for, and what its failures look like."""

from __future__ import annotations

import http.client
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.choices import ChoicesDecision, ChoicesSamplingMethod
from sglang.lang.ir import SglSamplingParams
from sglang.utils import http_request

from agentinfer.clock import Clock
from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.programs.conversation import Written
from agentinfer.collab_lang.programs.endpoint import EngineFailure, PromptedEndpoint, Turn, connect
from agentinfer.collab_lang.programs.load import Load
from agentinfer.collab_lang.programs.rendering import Refusal, Renderer

Result = TypeVar("Result")

# How long an engine that did not answer is left alone before a step tries it again.
_REST_S: Final = 5.0
_PREFILL_PATH: Final = "/agentinfer/prefill"
# What an engine that is gone, starting, overloaded or broken looks like from here.
_NO_ANSWER: Final = (OSError, http.client.HTTPException, json.JSONDecodeError)


class Engine:
    """One model's engine. Connects at first use, so that the other one can speak while this one is down."""

    def __init__(self, model: Model, where: RuntimeEndpoint | str, clock: Clock) -> None:
        """`where`: a `RuntimeEndpoint`, an `sgl.Runtime`, or the URL of one."""
        self.model = model
        self.load = Load(clock)
        self._clock = clock
        self._lock = threading.Lock()
        self._down_until_s = -math.inf
        self._has_prefill = True
        plain = getattr(where, "endpoint", where)
        self._url = plain if isinstance(plain, str) else plain.base_url
        self._endpoint = None if isinstance(plain, str) else PromptedEndpoint(plain)
        self._renderer: Renderer | None = None

    @property
    def name(self) -> str:
        return f"the {self.model.value} model's engine at {self._url}"

    @property
    def is_available(self) -> bool:
        """Whether a step should try it."""
        return self._clock.monotonic_s() >= self._down_until_s

    def endpoint(self) -> RuntimeEndpoint:
        """Raises EngineFailure where it does not answer."""
        with self._lock:
            if self._endpoint is None:
                with self._watched():
                    self._endpoint = connect(self._url)
            return self._endpoint

    def turn(
        self, what: Written, hints: Mapping[str, Any], choices: Sequence[str] = (), is_thinking: bool = True
    ) -> Turn:
        """A request to continue `what`. Raises EngineFailure, as everything below does."""
        renderer = self.renderer()
        prompt = renderer.prompt(what, is_thinking)
        if not choices or what.is_plain_text:
            return Turn(prompt, hints)
        begun = [Written(what.messages, what.role, what.begun + choice) for choice in choices]
        # SGLang compares the end of the prompt with the token at which it is healed.
        return Turn(prompt, hints, tuple(map(renderer.prompt, begun)), what.begun or renderer.ending(prompt))

    def turn_ahead(self, what: Written, hints: Mapping[str, Any]) -> Turn:
        """A request for the KV of all that `what` has, whatever message follows it."""
        return Turn(self.renderer().history(what), hints)

    def generate(self, turn: Turn, params: SglSamplingParams) -> tuple[Any, dict[str, Any]]:
        text, meta = self._ask(lambda: self.endpoint().generate(turn, sampling_params=params))
        self._refuse_aborted(meta)
        return text, meta

    def generate_stream(self, turn: Turn, params: SglSamplingParams) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._watched():
            meta: dict[str, Any] = {}
            try:
                for text, meta in self.endpoint().generate_stream(turn, sampling_params=params):
                    self._refuse_aborted(meta)
                    yield text, meta
            except KeyError as error:  # an event with an error in it, which has none of the fields of a piece
                raise EngineFailure(f"refused the request in its stream (no {error})", is_down=False) from error
            if not meta.get("finish_reason"):
                raise EngineFailure("its stream broke off", is_down=True)

    def select(
        self, turn: Turn, choices: list[str], temperature: float, method: ChoicesSamplingMethod
    ) -> ChoicesDecision:
        return self._ask(lambda: self.endpoint().select(turn, choices, temperature, method))

    def cache_prefix(self, text: str) -> None:
        self._ask(lambda: self.endpoint().cache_prefix(text))

    def score(self, prompt: Sequence[int], words: Sequence[Sequence[int]], hints: Mapping[str, Any]) -> list[float]:
        """The log-probability of each of `words` as what `prompt` goes on with. Raises Refusal too."""
        body = {
            "input_ids": [[*prompt, *word] for word in words],
            "sampling_params": {"max_new_tokens": 0, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": len(prompt) - 1,
            "session_id": hints["session"],
            "agentinfer": dict(hints),
        }
        answers = self.post("/generate", body)
        # The first of them is the prompt's own last token.
        return [sum(row[0] for row in each["meta_info"]["input_token_logprobs"][1:]) for each in answers]

    def prefill(self, turn: Turn) -> None:
        """Computes the prompt's KV, between other work where the engine has our route for it."""
        if self._has_prefill:
            ids = turn.prompt.ids
            prompt: dict[str, Any] = {"text": turn.prompt.text} if ids is None else {"input_ids": list(ids)}
            try:
                self.post(_PREFILL_PATH, {**prompt, "agentinfer": dict(turn.hints)})
                return
            except Refusal as refusal:
                # Stock SGLang, or a launcher without it; else it has no room for this one.
                self._has_prefill = not refusal.is_missing
                if self._has_prefill:
                    raise
        self.commit(turn)

    def commit(self, turn: Turn) -> None:
        """Computes the prompt's KV at once."""
        self._ask(lambda: self.endpoint().commit_lazy_operations(turn))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON body of an answer. Raises Refusal for a refusal, EngineFailure where nothing answers."""
        endpoint = self.endpoint()
        with self._watched():
            response = http_request(
                endpoint.base_url + path, json=body, api_key=endpoint.api_key, verify=endpoint.verify
            )
            # Our route has no room for now. Of any other, a refusal would tell what the engine can never do.
            has_no_room = path == _PREFILL_PATH and "retry-after" in response.resp.headers
            if response.status_code in (502, 503, 504) and not has_no_room:
                raise EngineFailure(f"HTTP {response.status_code}", is_down=True)
            if response.status_code >= 400:
                is_missing = response.status_code in (404, 405)
                raise Refusal(f"{path}: HTTP {response.status_code}: {str(response.text)[:300]}", is_missing)
            return response.json()

    def renderer(self) -> Renderer:
        if self._renderer is None:
            self._renderer = Renderer(self.post, self.endpoint().chat_template, self.name)
        return self._renderer

    def _ask(self, act: Callable[[], Result]) -> Result:
        with self._watched():
            return act()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Failures become EngineFailure with this engine's name, and an engine that does not answer rests."""
        with self.load.busy():
            try:
                yield
            except EngineFailure as failure:
                if failure.engine is not None:
                    raise
                if failure.is_down:
                    self._rest()
                raise EngineFailure(f"{self.name}: {failure}", failure.is_down, self.name) from None
            except _NO_ANSWER as error:
                self._rest()
                raise EngineFailure(f"{self.name}: no answer ({error})", True, self.name) from error

    def _refuse_aborted(self, meta: Any) -> None:
        reason = meta.get("finish_reason") if isinstance(meta, dict) else None
        if isinstance(reason, dict) and reason.get("type") == "abort":
            raise EngineFailure(f"aborted: {reason.get('message')}", is_down=False)

    def _rest(self) -> None:
        self._down_until_s = self._clock.monotonic_s() + _REST_S
