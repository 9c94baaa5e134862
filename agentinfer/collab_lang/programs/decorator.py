"""`@collab`: a program of the frontend language that names its two models when it is run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.global_config import global_config
from sglang.lang.interpreter import ProgramState
from sglang.lang.ir import SglFunction
from sglang.lang.tracer import TracerProgramState

from agentinfer.collab_lang.programs.backend import DEFAULT_SETTINGS, CollabBackend, CollabError
from agentinfer.collab_lang.settings import CollabSettings

Where: TypeAlias = RuntimeEndpoint | str


class CollabProgram(SglFunction):
    """As `sgl.function` makes it; `run` and `run_batch` also take `large=` and `small=`, endpoints or their URLs.

    Without the two, the default backend serves, which must be a `CollabBackend`; the program's own settings hold there,
    too.
    """

    def __init__(self, func: Callable[..., Any], settings: CollabSettings, **options: Any) -> None:
        super().__init__(func, **options)
        self.func = _with_cause(func)
        self.settings = settings
        self._backends: dict[tuple[Any, ...], CollabBackend] = {}

    def bind(self, **kwargs: Any) -> CollabProgram:
        bound = CollabProgram(self.func, self.settings, bind_arguments={**self.bind_arguments, **kwargs})
        bound._backends = self._backends
        return bound

    def run(
        self, *args: Any, large: Where | None = None, small: Where | None = None, backend: Any = None, **kwargs: Any
    ) -> Any:
        return super().run(*args, backend=self._backend(large, small, backend), **kwargs)

    def run_batch(
        self,
        batch_kwargs: Any,
        *,
        large: Where | None = None,
        small: Where | None = None,
        backend: Any = None,
        **kwargs: Any,
    ) -> Any:
        return super().run_batch(batch_kwargs, backend=self._backend(large, small, backend), **kwargs)

    def _backend(self, large: Where | None, small: Where | None, backend: BaseBackend | None) -> CollabBackend:
        if (large is None) != (small is None):
            raise CollabError("got one of large= and small=, expected both or neither")
        if large is not None and small is not None:
            if backend is not None:
                raise CollabError("got backend= besides large= and small=, expected one or the other")
            return self._kept((large, small), lambda: CollabBackend(large, small, self.settings))
        found = backend or global_config.default_backend
        if not isinstance(found, CollabBackend):
            raise CollabError(
                f"a collab program ran on {type(found).__name__}, expected two models: pass large= and small=, or "
                "sgl.set_default_backend(CollabBackend(large, small))"
            )
        if found.settings == self.settings:
            return found
        return self._kept((found,), lambda: found.with_settings(self.settings))

    def _kept(self, key: tuple[Any, ...], make: Callable[[], CollabBackend]) -> CollabBackend:
        """One backend for the same engines, so that what it learns of them is not lost with each run."""
        if key not in self._backends:
            self._backends[key] = make()
        return self._backends[key]


def _with_cause(func: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter leaves a failed `gen` without its variable; reading that raises the failure, not its absence."""

    @functools.wraps(func)
    def run(s: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return func(s, *args, **kwargs)
        except KeyError:
            failure = s.error() if isinstance(s, ProgramState) and not isinstance(s, TracerProgramState) else None
            if failure is None:
                raise
            raise failure from None

    return run


def collab(program: Callable[..., Any] | SglFunction | CollabSettings | None = None, /, **changes: Any) -> Any:
    """Makes a program from a function of `s` and more: bare, with settings, or with fields of them that change.

    @collab(warm_up_steps=1, check="verdict")
    def agent(s, question): ...

    agent.run(question="...", large="http://127.0.0.1:30000", small="http://127.0.0.1:30001")
    """
    if isinstance(program, CollabSettings):
        return lambda func: _program(func, replace(program, **changes))
    if program is None:
        return lambda func: _program(func, replace(DEFAULT_SETTINGS, **changes))
    return _program(program, replace(DEFAULT_SETTINGS, **changes))


def _program(made_of: Callable[..., Any] | SglFunction, settings: CollabSettings) -> CollabProgram:
    if isinstance(made_of, SglFunction):
        return CollabProgram(made_of.func, settings, bind_arguments=made_of.bind_arguments)
    return CollabProgram(made_of, settings)
