"""What is done while the program's own code runs: the check of the step, and the prefill on the silent model.

Each is a request in a thread of its own, for which no turn waits. A step's check begins when its message is closed: a
program that goes on writing the message within milliseconds is not yet at its tool.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sglang.lang.interpreter import StreamExecutor
from sglang.lang.ir import SglSamplingParams

from agentinfer.collab_lang import hand_over
from agentinfer.collab_lang.controller import Model, Verdict
from agentinfer.collab_lang.hand_over import EscalationRate, HandOvers
from agentinfer.collab_lang.programs import checks
from agentinfer.collab_lang.programs.branch import Branch, PendingCheck, Switch
from agentinfer.collab_lang.programs.conversation import Place, Written, message_at
from agentinfer.collab_lang.programs.endpoint import EngineFailure, Turn
from agentinfer.collab_lang.programs.engine import Engine
from agentinfer.collab_lang.programs.rendering import Prompt, Refusal
from agentinfer.collab_lang.progress import Judgement, verdict
from agentinfer.collab_lang.settings import Check, CollabSettings
from agentinfer.collab_lang.trajectory import Choice

logger = logging.getLogger(__name__)

# A message that is still open after this is one in which the program runs its tool.
_MESSAGE_END_S: Final = 0.02
_LOOK_EVERY_S: Final = 0.001
# Beyond so many checks of one backend at a time, engines are too slow for checks: a step goes unjudged.
_MOST_CHECKS: Final = 128


@dataclass(frozen=True, slots=True)
class EndedStep:
    """`choice` spoke at `where`, after `before`, and is to be judged by `check`; `switch`: it had not spoken before."""

    where: Place
    branch: Branch
    choice: Choice
    check: PendingCheck
    before: Written
    switch: Switch | None


class ToolTime:
    """Starts the work behind a step. `rate` is how often the backend's steps are escalated; switches are counted."""

    def __init__(
        self, engines: Mapping[Model, Engine], settings: CollabSettings, rate: EscalationRate, hand_overs: HandOvers
    ) -> None:
        self._engines = engines
        self._settings = settings
        self._rate = rate
        self._hand_overs = hand_overs
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(_MOST_CHECKS)

    def compile_ahead(self, regex: str) -> None:
        """Has both engines compile a grammar, which takes the first request with it seconds."""
        for engine in self._engines.values():
            _start(functools.partial(_compile, engine, regex))

    def step_ended(self, s: StreamExecutor, step: EndedStep) -> None:
        """Returns at once."""
        if self._room.acquire(blocking=False):
            reference = weakref.ref(s)
            _start(lambda: self._run(reference, step), self._room.release)
        else:
            step.branch.judged(step.check, None)

    def _run(self, reference: Callable[[], StreamExecutor | None], step: EndedStep) -> None:
        judgement = None
        try:
            what = _when_closed(reference, step.where, step.check)
            if what is None or step.check.is_discarded:
                return
            is_warming = self._warm(what, step.branch, step.choice.model.other)
            self._count(step)
            judgement = self._judge(what, step.branch, step.choice)
        finally:
            step.branch.judged(step.check, judgement)
        if judgement is None or is_warming or step.check.is_discarded:
            return
        said = verdict(judgement, self._settings.threshold)
        if step.choice.model is Model.SMALL and said is Verdict.NO_PROGRESS:
            self._warm(what, step.branch, Model.LARGE, is_certain=True)

    def _count(self, step: EndedStep) -> None:
        """What came after the last reply is new to either model: it is no matter of the switch."""
        if step.switch is None:
            return
        messages = step.before.messages
        last = max((at for at, each in enumerate(messages) if each["role"] == "assistant"), default=None)
        history = None if last is None else Written(messages[:last], "assistant", str(messages[last]["content"]))
        fresh_tokens = 0
        if history is not None:
            with suppress(EngineFailure, Refusal):
                known = self._engines[step.choice.model].turn_ahead(history, {}).prompt.num_tokens
                fresh_tokens = max(0, step.switch.prompt_tokens - known)
        with self._lock:
            counts = (step.switch.prompt_tokens, step.switch.cached_tokens, step.switch.seen_tokens)
            self._hand_overs.add(*counts, fresh_tokens)

    def _judge(self, what: Written, branch: Branch, choice: Choice) -> Judgement | None:
        kind = self._settings.check
        if kind is Check.OFF:
            return None
        engine = self._engines[choice.model]
        # A session of its own: the question is no turn of the program.
        hints = {"session": f"{branch.session}.check", "parent": branch.session}
        try:
            return checks.judge(engine, what, kind, hints)
        except (EngineFailure, Refusal) as error:
            logger.info("step %d of %s is not judged: %s", choice.step, branch.session, error)
            return None

    def _warm(self, what: Written, branch: Branch, standby: Model, is_certain: bool = False) -> bool:
        """Starts the prefill on `standby` where it is worth it."""
        engine = self._engines[standby]
        with branch.lock:
            chance = 1.0 if is_certain else hand_over.chance_of_switch(branch.trajectory.state, self._rate.per_step)
            seen_tokens = branch.seen_tokens.get(standby, 0)
        # Whether there is enough to prefill is known when it is rendered.
        if not engine.is_available or not hand_over.is_worth(chance, engine.load.share, hand_over.MIN_TOKENS):
            return False
        _start(lambda: self._prefill(engine, what, branch, seen_tokens))
        return True

    def _prefill(self, engine: Engine, what: Written, branch: Branch, seen_tokens: int) -> None:
        try:
            turn = engine.turn_ahead(what, {"session": branch.session})
            if turn.prompt.num_tokens - seen_tokens >= hand_over.MIN_TOKENS:
                engine.prefill(turn)
        except (EngineFailure, Refusal) as error:
            logger.info("%s is not prefilled ahead: %s", branch.session, error)


def _when_closed(reference: Callable[[], StreamExecutor | None], where: Place, check: PendingCheck) -> Written | None:
    """What was written when the message at `where` was closed; None where its writing went on."""
    until_s = time.monotonic() + _MESSAGE_END_S
    while True:
        s = reference()
        if s is None:
            return None
        if where.index is None and not s.messages_:
            if len(s.text_) >= check.length:
                return Written((), None, s.text_[: check.length])
        elif where.index is not None and len(s.messages_) > where.index:
            return message_at(s, where)
        if time.monotonic() >= until_s:
            return message_at(s, where)
        del s
        if check.is_discarded:
            return None
        time.sleep(_LOOK_EVERY_S)


def _compile(engine: Engine, regex: str) -> None:
    params = SglSamplingParams(max_new_tokens=1, temperature=0.0, regex=regex)
    with suppress(EngineFailure):
        engine.generate(Turn(Prompt(text="."), {"session": "collab-grammar"}), params)


def _start(act: Callable[[], None], always: Callable[[], None] = lambda: None) -> None:
    def run() -> None:
        try:
            act()
        except Exception:
            logger.exception("work behind a step failed; the program goes on without it")
        finally:
            always()

    # A daemon: a program that is over does not wait for the judgement of its last step.
    threading.Thread(target=run, name="agentinfer-collab", daemon=True).start()
