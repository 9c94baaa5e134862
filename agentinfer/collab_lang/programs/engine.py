"""One engine of the pair: a plain `RuntimeEndpoint`, given prompts and hints of our own, and watched for failures.

SGLang's endpoint builds each request from a program and lets a subclass see it in one place, `_add_images`. So all its
methods serve us, selection with its token healing included, with a `Turn` in the program's place.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.choices import ChoicesDecision, ChoicesSamplingMethod
from sglang.lang.ir import SglSamplingParams
from sglang.utils import http_request

from agentinfer.clock import Clock
from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.programs.conversation import Written
from agentinfer.collab_lang.programs.rendering import Prompt, Refusal, Renderer
from agentinfer.errors import AgentInferError

Result = TypeVar("Result")

# How long an engine that did not answer is left alone before a step tries it again.
_REST_S: Final = 5.0
# Over this time the share is taken for which an engine is busy with us.
_LOAD_WINDOW_S: Final = 10.0
_PREFILL_PATH: Final = "/agentinfer/prefill"
# What an engine that is gone, starting, overloaded or broken looks like from here.
_NO_ANSWER: Final = (OSError, http.client.HTTPException, json.JSONDecodeError)


class EngineFailure(AgentInferError):
    """One engine did not do what it was asked. `is_down`: it does not answer; else it refused this request."""

    def __init__(self, message: str, is_down: bool) -> None:
        super().__init__(message)
        self.is_down = is_down


@dataclass(slots=True)
class Turn:
    """Stands in for a program in SGLang's own endpoint methods: `text_` and `images_` are what they read of one.

    `choice_prompts` are the prompts of a selection, each with its choice.
    """

    prompt: Prompt
    hints: Mapping[str, Any]
    choice_prompts: tuple[Prompt, ...] = ()
    images_: list[Any] = field(default_factory=list)

    @property
    def text_(self) -> str:
        return self.prompt.text if self.prompt.text is not None else self.prompt.ending

    def fill(self, data: dict[str, Any]) -> None:
        """Puts the prompt, the session and the hints into a request."""
        text = data.get("text")
        if isinstance(text, list):
            prompts = self.choice_prompts
            if prompts and all(each.ids is not None for each in prompts):
                del data["text"]
                data["input_ids"] = [list(each.ids or ()) for each in prompts]
        elif text is not None:
            if self.prompt.ids is not None:
                del data["text"]
                data["input_ids"] = list(self.prompt.ids)
            data["session_id"] = self.hints["session"]
            data["agentinfer"] = dict(self.hints)
        stop = data["sampling_params"].get("stop", ())
        if self.prompt.stop:
            own = [stop] if isinstance(stop, str) else list(stop or ())
            data["sampling_params"]["stop"] = [*own, *self.prompt.stop]


class _Endpoint(RuntimeEndpoint):
    """A user's endpoint, connected already, with the two changes that the module's docstring names."""

    def __init__(self, plain: RuntimeEndpoint) -> None:
        self.__dict__.update(plain.__dict__)

    def _add_images(self, s: Turn, data: dict[str, Any]) -> None:
        s.fill(data)

    def _assert_success(self, res: Any) -> None:
        if res.status_code != 200:
            text = getattr(res, "text", None) or res.json()
            raise EngineFailure(f"HTTP {res.status_code}: {str(text)[:300]}", is_down=res.status_code >= 500)


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
        self._endpoint = None if isinstance(plain, str) else _Endpoint(plain)
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
                    self._endpoint = _connect(self._url)
            return self._endpoint

    def turn(
        self, what: Written, hints: Mapping[str, Any], choices: Sequence[str] = (), is_thinking: bool = True
    ) -> Turn:
        """A request to continue `what`. Raises EngineFailure, as everything below does."""
        renderer = self.renderer()
        chosen = tuple(
            renderer.prompt(Written(what.messages, what.role, what.begun + choice))
            for choice in choices
            if not what.is_plain_text
        )
        return Turn(renderer.prompt(what, is_thinking), hints, chosen)

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

    def score(self, prompt: Sequence[int], words: Sequence[Sequence[int]]) -> list[float]:
        """The log-probability of each of `words` as what `prompt` goes on with. Raises Refusal too."""
        body = {
            "input_ids": [[*prompt, *word] for word in words],
            "sampling_params": {"max_new_tokens": 0, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": len(prompt) - 1,
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
            except Refusal:
                self._has_prefill = False  # stock SGLang, or a launcher without it
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
            if response.status_code in (502, 503, 504):
                raise EngineFailure(f"HTTP {response.status_code}", is_down=True)
            if response.status_code >= 400:
                raise Refusal(f"{path}: HTTP {response.status_code}: {str(response.text)[:300]}")
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
                if failure.is_down:
                    self._rest()
                named = str(failure) if str(failure).startswith("the ") else f"{self.name}: {failure}"
                raise EngineFailure(named, failure.is_down) from None
            except _NO_ANSWER as error:
                self._rest()
                raise EngineFailure(f"{self.name}: no answer ({error})", is_down=True) from error

    def _refuse_aborted(self, meta: Any) -> None:
        reason = meta.get("finish_reason") if isinstance(meta, dict) else None
        if isinstance(reason, dict) and reason.get("type") == "abort":
            raise EngineFailure(f"aborted: {reason.get('message')}", is_down=False)

    def _rest(self) -> None:
        self._down_until_s = self._clock.monotonic_s() + _REST_S


def _connect(url: str) -> _Endpoint:
    try:
        return _Endpoint(RuntimeEndpoint(url))
    except RuntimeError as error:
        raise EngineFailure(f"/get_model_info: {error}", is_down=True) from None


class Load:
    """The share of the last seconds for which an engine worked on requests of ours. Others' are not seen from here."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running = 0
        self._share = 0.0
        self._at_s = clock.monotonic_s()

    @property
    def share(self) -> float:
        with self._lock:
            self._advance()
            return self._share

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._lock:
            self._advance()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._advance()
                self._running -= 1

    def _advance(self) -> None:
        now_s = self._clock.monotonic_s()
        kept = math.exp((self._at_s - now_s) / _LOAD_WINDOW_S)
        self._share = self._share * kept + (1.0 - kept) * (self._running > 0)
        self._at_s = now_s
