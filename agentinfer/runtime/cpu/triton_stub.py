"""Entry point `torch.backends`: an importable `triton` with no compiler behind it, where the real package is absent.

SGLang imports triton unconditionally (`srt/utils/common.py`), though no triton kernel runs on a CPU, and the package
takes 1 GB on disk. torch calls this entry point at the end of `import torch` in every process of the environment;
SGLang imports torch one line before triton and has no earlier plugin point. Because it runs everywhere, installing
does nothing but append a finder, which answers only once SGLang itself is being imported.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

_DECORATORS = ("jit", "autotune", "heuristics", "constexpr_function")


def install() -> bool:
    """Appends the finder and says whether it did; False when a real triton can be imported or the finder is there."""
    if any(isinstance(finder, TritonStubFinder) for finder in sys.meta_path):
        return False
    if importlib.util.find_spec("triton") is not None:
        return False
    # torch caches this answer; asked now, it keeps knowing that there is no triton to compile with.
    with contextlib.suppress(ImportError, AttributeError):
        from torch.utils._triton import has_triton_package

        has_triton_package()
    sys.meta_path.append(TritonStubFinder())
    return True


class TritonStubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands last on `sys.meta_path`, so a real triton always wins."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for triton and its submodules while SGLang is loaded, else None."""
        if fullname.partition(".")[0] == "triton" and "sglang" in sys.modules:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """An empty module whose attributes come into being when asked for."""
        return _StubModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Adds the three names SGLang computes with rather than launches."""
        if module.__name__ == "triton":
            vars(module).update(__version__="0.0.0", cdiv=_cdiv, next_power_of_2=_next_power_of_2)


class StubKernel:
    """What `@triton.jit` returns: keeps the Python function, refuses to run it."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.__name__ = getattr(fn, "__name__", "kernel")
        self.__doc__ = getattr(fn, "__doc__", None)
        self.__module__ = getattr(fn, "__module__", __name__)

    def __getitem__(self, grid: object) -> Callable[..., Any]:
        return self

    def __call__(self, *_args: object, **_kwargs: object) -> None:
        raise RuntimeError(
            f"triton kernel {self.__module__}.{self.__name__} was launched, but triton is not installed and there is "
            "no GPU. The feature that launched it does not run on this CPU engine: switch that feature off."
        )


class _StubModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        loaded = sys.modules.get(f"{self.__name__}.{name}")
        value: Any = loaded if loaded is not None else _decorate if name in _DECORATORS else _stub_class(name)
        setattr(self, name, value)
        return value


class _StubType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stub_class(name)


def _stub_class(name: str) -> type:
    """Stands for a dtype, a config class or a namespace: can be named, annotated with, subscripted and constructed."""
    body = {"__init__": lambda self, *_args, **_kwargs: None, "__class_getitem__": classmethod(lambda cls, _item: cls)}
    return _StubType(name, (), body)


def _decorate(*args: Any, **kwargs: Any) -> Any:
    """`@jit`, `@jit(...)`, `@autotune(...)` and `@heuristics(...)` alike."""
    if len(args) == 1 and not kwargs and callable(args[0]):
        return args[0] if isinstance(args[0], StubKernel) else StubKernel(args[0])
    return lambda fn: fn if isinstance(fn, StubKernel) else StubKernel(fn)


def _cdiv(numerator: int, denominator: int) -> int:
    return -(numerator // -denominator)


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length() if number > 0 else 0
