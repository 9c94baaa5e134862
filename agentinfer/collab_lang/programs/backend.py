"""The backend on which any program of SGLang's frontend language runs on two models.

A step is an assistant message that is being written: its first `gen` or `select` asks the trajectory who speaks, and
the rest of the message stays with that model. The prompt is made anew from the program's messages in the speaker's own
format. An engine that fails leaves the step to the other one. In text without messages each `gen` is a step.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.choices import ChoicesDecision, ChoicesSamplingMethod
from sglang.lang.interpreter import StreamExecutor
from sglang.lang.ir import SglSamplingParams

from agentinfer.clock import Clock, SystemClock
from agentinfer.collab_lang import progress
from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.hand_over import EscalationRate, HandOvers
from agentinfer.collab_lang.programs.branch import Branch, RunTemplate, branch_of
from agentinfer.collab_lang.programs.conversation import Place, Written, has_loose_text, place, written
from agentinfer.collab_lang.programs.endpoint import EngineFailure, Turn
from agentinfer.collab_lang.programs.engine import Engine
from agentinfer.collab_lang.programs.joins import Joins
from agentinfer.collab_lang.programs.rendering import Refusal
from agentinfer.collab_lang.programs.tool_time import EndedStep, ToolTime
from agentinfer.collab_lang.settings import Check, CollabSettings
from agentinfer.collab_lang.trajectory import UNAVAILABLE, Choice
from agentinfer.errors import AgentInferError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# A program ends by itself: no limit of steps but where one is set.
DEFAULT_SETTINGS = CollabSettings(max_steps=None)


class CollabError(AgentInferError):
    """A program cannot go on: neither model can take the step, or the steps are spent."""


@dataclass(slots=True)
class _Step:
    """Where a program asks to be continued, and by whom."""

    s: StreamExecutor
    branch: Branch
    where: Place
    what: Written
    choice: Choice


class CollabBackend(BaseBackend):
    """Two endpoints as one backend: `agent.run(..., backend=CollabBackend(large, small))`, or the default backend.

    `large` and `small`: a `RuntimeEndpoint`, an `sgl.Runtime` or a URL. A URL is connected to at its first use, so a
    program starts with one engine down. One backend serves any number of programs at a time and learns over all of them
    how often steps are escalated; `hand_overs` counts what switches found prefilled.
    """

    def __init__(
        self,
        large: RuntimeEndpoint | str,
        small: RuntimeEndpoint | str,
        settings: CollabSettings = DEFAULT_SETTINGS,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        # What is concatenated are messages, not KV.
        self.support_concate_and_append = True
        self.settings = settings
        self.hand_overs = HandOvers()
        clock = clock or SystemClock()
        self._engines = {Model.LARGE: Engine(Model.LARGE, large, clock), Model.SMALL: Engine(Model.SMALL, small, clock)}
        self._rate = EscalationRate()
        self._lock = threading.Lock()
        self._joins = Joins()
        self._prepare()

    def with_settings(self, settings: CollabSettings) -> CollabBackend:
        """Another backend on the same engines, which shares what was learnt of them."""
        other = copy.copy(self)
        other.settings = settings
        other._prepare()
        return other

    def _prepare(self) -> None:
        self._tool_time = ToolTime(self._engines, self.settings, self._rate, self.hand_overs)
        if self.settings.check is Check.BLOCK:
            self._tool_time.compile_ahead(progress.BLOCK_REGEX)

    def get_model_name(self) -> str:
        return "+".join(str(engine.endpoint().get_model_name()) for engine in self._engines.values())

    def get_chat_template(self) -> RunTemplate:
        """A new run's; the interpreter asks once for each."""
        return RunTemplate.of_new_run(self._first_connected().chat_template, self.settings)

    def get_server_info(self) -> dict[str, Any]:
        return {model.value: engine.endpoint().get_server_info() for model, engine in self._engines.items()}

    def flush_cache(self) -> None:
        for engine in self._engines.values():
            engine.endpoint().flush_cache()

    def cache_prefix(self, prefix_str: str) -> None:
        """What the programs of a batch begin with, on the model that opens. Text with roles in it is in no model's
        own format, so it is left to the first of the programs."""
        frames = self._first_connected().chat_template.role_prefix_and_suffix.values()
        if any(prefix and prefix in prefix_str for prefix, _ in frames):
            return
        opens = Model.LARGE if self.settings.warm_up_steps else Model.SMALL
        try:
            self._engines[opens].cache_prefix(prefix_str)
        except EngineFailure as error:
            logger.info("the batch's common text is not computed ahead: %s", error)

    def commit_lazy_operations(self, s: StreamExecutor) -> None:
        """The program is about to fork: its KV is computed once, on the model that will most likely go on."""
        branch = self._branch(s)
        engine = self._engines[branch.expected_speaker(place(s))]
        try:
            engine.commit(engine.turn(written(s), {"session": branch.session}))
        except (EngineFailure, Refusal) as error:
            logger.info("what the forks have in common is not computed ahead: %s", error)

    def concatenate_and_append(self, src_rids: list[str], dst_rid: str) -> None:
        """Forks are joined one after the other: the text is, by the interpreter, and here their messages."""
        self._joins.join(src_rids, dst_rid)

    def generate(self, s: StreamExecutor, sampling_params: SglSamplingParams) -> tuple[Any, dict[str, Any]]:
        def act(engine: Engine, turn: Turn) -> tuple[Any, dict[str, Any]]:
            return engine.generate(turn, copy.deepcopy(sampling_params))

        step = self._begin(s)
        text, meta = self._speak(step, act)
        self._end(step, meta, s.text_ + (text[0] if isinstance(text, list) else text))
        return text, meta

    def select(
        self, s: StreamExecutor, choices: list[str], temperature: float, choices_method: ChoicesSamplingMethod
    ) -> ChoicesDecision:
        def act(engine: Engine, turn: Turn) -> ChoicesDecision:
            return engine.select(turn, choices, temperature, choices_method)

        step = self._begin(s)
        decision = self._speak(step, act, choices)
        decision.meta_info = decision.meta_info or {}
        self._end(step, decision.meta_info, s.text_ + decision.decision)
        return decision

    def generate_stream(
        self, s: StreamExecutor, sampling_params: SglSamplingParams
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        step = self._begin(s)
        params = copy.deepcopy(sampling_params)
        is_grammar = bool(params.regex or params.json_schema or params.dtype)
        begins_at = len(s.text_)
        meta: dict[str, Any] = {}
        said_tokens = 0
        for attempt in range(2):
            # What the model that failed has said stays; the other one goes on from there.
            step.what = written(s)
            params.max_new_tokens = sampling_params.max_new_tokens - said_tokens
            try:
                engine = self._engines[step.choice.model]
                turn = engine.turn(step.what, step.branch.hints(step.choice))
                for text, meta in engine.generate_stream(turn, copy.deepcopy(params)):
                    meta["agentinfer"] = self._note(step.choice)
                    yield text, meta
                break
            except EngineFailure as failure:
                has_begun = len(s.text_) > begins_at
                said_tokens = int(meta.get("completion_tokens", 0))
                if attempt == 1 or (has_begun and is_grammar) or said_tokens >= sampling_params.max_new_tokens:
                    raise CollabError(f"the step is not finished: {failure}") from failure
                self._take_over(step, failure)
        self._end(step, meta, s.text_)

    def _begin(self, s: StreamExecutor) -> _Step:
        if s.images_:
            raise CollabError(
                "a program has images or videos, which two models do not share: run it on one RuntimeEndpoint"
            )
        branch = self._branch(s)
        where = place(s)
        available = [model for model, engine in self._engines.items() if engine.is_available] or list(Model)
        with branch.lock:
            steps = branch.trajectory.state.steps
            try:
                choice = branch.begin(where, available)
            except ValueError as error:
                limit = f"max_steps is {self.settings.max_steps}: set a higher one, or none"
                raise CollabError(f"{error}; {limit}") from None
            if branch.trajectory.state.steps > steps:
                self._learn(branch)
            if s.messages_ and not branch.has_warned and has_loose_text(s):
                branch.has_warned = True
                logger.warning("the program has text outside of messages; no model sees it: put it into a message")
        return _Step(s, branch, where, written(s), choice)

    def _speak(self, step: _Step, act: Callable[[Engine, Turn], Result], choices: list[str] | None = None) -> Result:
        """Does `act` on the step's model, or on the other one where that fails."""
        failures: list[EngineFailure] = []
        for _ in Model:
            engine = self._engines[step.choice.model]
            try:
                return act(engine, engine.turn(step.what, step.branch.hints(step.choice), choices or ()))
            except EngineFailure as failure:
                failures.append(failure)
                if len(failures) < len(Model):
                    self._take_over(step, failure)
        raise CollabError("neither model can take the step: " + "; ".join(map(str, failures)))

    def _take_over(self, step: _Step, failure: EngineFailure) -> None:
        step.choice = Choice(step.choice.step, step.choice.model.other, UNAVAILABLE)
        logger.warning("step %d: the %s model speaks: %s", step.choice.step, step.choice.model.value, failure)

    def _end(self, step: _Step, meta: Any, text: str) -> None:
        """The step, or one more part of its message, has been spoken."""
        switch = None
        if isinstance(meta, dict):
            meta["agentinfer"] = self._note(step.choice)
            counts = [int(meta.get(name, 0)) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")]
            if counts[0]:
                switch = step.branch.count(step.choice.model, *counts)
        check = step.branch.end(step.choice, text)
        self._tool_time.step_ended(step.s, EndedStep(step.where, step.branch, step.choice, check, step.what, switch))

    def _note(self, choice: Choice) -> dict[str, Any]:
        return {"model": choice.model.value, "step": choice.step, "reason": str(choice.reason)}

    def _learn(self, branch: Branch) -> None:
        closed = branch.trajectory.transitions[-1]
        if closed.speaker is Model.SMALL:
            with self._lock:
                self._rate.observe(closed.next_model is Model.LARGE)

    def _branch(self, s: StreamExecutor) -> Branch:
        self._joins.seen(s)
        return branch_of(s)

    def _first_connected(self) -> RuntimeEndpoint:
        failures = []
        for engine in self._engines.values():
            try:
                return engine.endpoint()
            except EngineFailure as failure:
                failures.append(str(failure))
        raise CollabError("neither engine answers: " + "; ".join(failures))
