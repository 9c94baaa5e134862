"""What a program run carries along: its trajectory, and those of its forks.

SGLang's interpreter tells a backend neither that a program begins nor that it forks. What a run and its forks share is
the chat template object, of which the backend gives each run one of its own: so that carries the state. A fork is seen
at its first request, and its trajectory begins where its parent's was at the text it was forked at.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, Final

from sglang.lang.chat_template import ChatTemplate
from sglang.lang.interpreter import StreamExecutor

from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.programs.conversation import Place, place
from agentinfer.collab_lang.progress import Judgement
from agentinfer.collab_lang.settings import CollabSettings
from agentinfer.collab_lang.trajectory import UNAVAILABLE, Choice, Trajectory

_KEPT_CHOICES: Final = 256
# Steps back to which a fork can be made; forks are made at the end of the text but for text that was added since.
_KEPT_MARKS: Final = 32


@dataclass(slots=True)
class PendingCheck:
    """A check that runs, and whose step it is: the branch's own trajectory and those that forked off after it.

    `length`: of the program's text when the step had been spoken.
    """

    step: int
    length: int
    followers: list[Trajectory]
    is_discarded: bool = False
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Switch:
    """A turn in which another model took over: its prompt's tokens, those found cached, those it had when it last
    spoke."""

    prompt_tokens: int
    cached_tokens: int
    seen_tokens: int


@dataclass(slots=True)
class _Mark:
    """The trajectory as it was when the text had `length` characters."""

    length: int
    text_hash: int
    trajectory: Trajectory
    check: PendingCheck | None


@dataclass
class Branch:
    """One line of a program. Its methods may be called from any thread."""

    session: str
    trajectory: Trajectory
    lock: threading.RLock = field(default_factory=threading.RLock)
    parent: str | None = None
    choices: deque[Choice] = field(default_factory=lambda: deque(maxlen=_KEPT_CHOICES))
    # Prompt and reply of each model's last turn, in tokens.
    seen_tokens: dict[Model, int] = field(default_factory=dict)
    last_speaker: Model | None = None
    check: PendingCheck | None = None
    has_warned: bool = False
    _open: Place | None = None
    _marks: deque[_Mark] = field(default_factory=lambda: deque(maxlen=_KEPT_MARKS))
    _forks: int = 0

    def begin(self, where: Place, available: Collection[Model]) -> Choice:
        """Who speaks at `where`: in a message that was begun, who began it. Raises ValueError where the run is over."""
        with self.lock:
            if self._is_same_message(where):
                choice = self.choices[-1]
                if choice.model not in available:
                    choice = Choice(choice.step, choice.model.other, UNAVAILABLE)
                self.discard_check()
                return choice
            choice = self.trajectory.begin_step(available)
            self._open = where
            self.choices.append(choice)
            return choice

    def end(self, choice: Choice, text: str) -> PendingCheck:
        """`choice` has spoken, after which the text is `text`; the check that is to be made of it."""
        with self.lock:
            self.choices[-1] = choice
            self.last_speaker = choice.model
            step = self.trajectory.end_step(choice.model)
            copy = self.trajectory.fork()
            self.check = PendingCheck(step, len(text), [self.trajectory, copy])
            self._marks.append(_Mark(len(text), hash(text), copy, self.check))
            return self.check

    def judged(self, check: PendingCheck, judgement: Judgement | None) -> None:
        """A check came back, or never will."""
        with self.lock:
            if judgement is not None and not check.is_discarded:
                for trajectory in check.followers:
                    trajectory.judged(check.step, judgement)
            check.done.set()

    def discard_check(self) -> None:
        """What is checked, or was, is being written on."""
        with self.lock:
            if self.check is not None:
                self.check.is_discarded = True
                for trajectory in self.check.followers:
                    trajectory.withdraw(self.check.step)

    def count(self, model: Model, prompt_tokens: int, cached_tokens: int, reply_tokens: int) -> Switch | None:
        """A turn's tokens, before `end`; the switch where it was one."""
        with self.lock:
            seen_tokens = self.seen_tokens.get(model, 0)
            self.seen_tokens[model] = prompt_tokens + reply_tokens
            is_switch = self.last_speaker is not None and self.last_speaker is not model
            return Switch(prompt_tokens, cached_tokens, seen_tokens) if is_switch else None

    def expected_speaker(self, where: Place) -> Model:
        """Who most likely continues at `where`."""
        with self.lock:
            if self._is_same_message(where):
                return self.choices[-1].model
            # The step before is closed by the next one; here a copy's is.
            return self.trajectory.fork().finish().model

    def fork(self, s: StreamExecutor) -> Branch:
        """The branch of `s`, which was forked off this one's program."""
        with self.lock:
            mark = next((each for each in reversed(self._marks) if _is_on(each, s)), None)
            if mark is None:
                trajectory = Trajectory(self.trajectory.settings)
            else:
                trajectory = mark.trajectory.fork()
                if mark.check is not None:
                    mark.check.followers.append(trajectory)
            self._forks += 1
            branch = Branch(f"{self.session}.{self._forks}", trajectory, self.lock, self.session)
            branch.seen_tokens = dict(self.seen_tokens)
            branch.last_speaker = self.last_speaker
            if mark is not None and self._is_same_message(place(s)):
                # Forked within a message: its model goes on with it.
                branch._open, branch.choices = self._open, deque([self.choices[-1]], maxlen=_KEPT_CHOICES)
            return branch

    def hints(self, choice: Choice) -> dict[str, Any]:
        """The `agentinfer` object of the requests of a step."""
        found: dict[str, Any] = {"session": self.session, "turn": choice.step}
        return found | ({"parent": self.parent} if self.parent else {})

    def _is_same_message(self, where: Place) -> bool:
        return where.index is not None and where == self._open and bool(self.choices)


@dataclass
class RunTemplate(ChatTemplate):
    """The chat template in which the interpreter writes down one run, and the run's state.

    It is for `state.text()` alone: what a model gets is in that model's own format.
    """

    branch: Branch | None = None
    owner: str | None = None

    @staticmethod
    def of_new_run(shown: ChatTemplate, settings: CollabSettings) -> RunTemplate:
        """A run's template that looks like `shown`; the models' own system prompts and ends of a turn do the rest."""
        copied = {each.name: getattr(shown, each.name) for each in fields(ChatTemplate)}
        copied |= {"default_system_prompt": None, "stop_str": ()}
        roles = dict(shown.role_prefix_and_suffix)
        roles.setdefault("tool", roles.get("user", ("", "")))
        copied["role_prefix_and_suffix"] = roles
        branch = Branch(f"collab-{uuid.uuid4().hex[:16]}", Trajectory(settings))
        return RunTemplate(**copied, branch=branch)


def branch_of(s: StreamExecutor) -> Branch:
    """The state of the program that `s` runs, or of the fork."""
    template = s.chat_template
    if not isinstance(template, RunTemplate) or template.branch is None:
        raise TypeError(f"a program with chat template {template.name!r} was not started on a CollabBackend")
    with template.branch.lock:
        if s.fork_start_text_pos is None or template.owner == s.sid:
            return template.branch
        copied = {each.name: getattr(template, each.name) for each in fields(ChatTemplate)}
        s.chat_template = RunTemplate(**copied, branch=template.branch.fork(s), owner=s.sid)
        branch: Branch = s.chat_template.branch
        return branch


def _is_on(mark: _Mark, s: StreamExecutor) -> bool:
    start = s.fork_start_text_pos
    return start is not None and mark.length <= start and hash(s.text_[: mark.length]) == mark.text_hash
