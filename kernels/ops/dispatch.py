"""Which implementation of an op runs: by the device of its tensors, unless the caller names one."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import torch

from agentinfer.kernels.tree import KernelInputError

Implementation = TypeVar("Implementation")


def choose(
    op: str, implementations: Mapping[str, Implementation], device: torch.device, wanted: str | None
) -> Implementation:
    """`wanted` if given, else `triton` on a GPU and `cpu` elsewhere. Raises KernelInputError for an unknown name."""
    name = wanted or ("triton" if device.type == "cuda" else "cpu")
    found = implementations.get(name)
    if found is None:
        raise KernelInputError(f"{op}: implementation {name!r} is unknown; there are {', '.join(implementations)}")
    return found


def on_first_call(module: str, function: str) -> Callable[..., Any]:
    """`function` of `module`, which is imported when it is first called, so that it may need Triton or FlashInfer.

    The call raises KernelInputError where the package is not installed.
    """

    @cache
    def load() -> Callable[..., Any]:
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            raise KernelInputError(
                f"{function}: {error}; leave the implementation to the device, or install what it needs "
                "(`pip install agentinfer[engine-cuda]`)"
            ) from error
        return found

    return lambda *args: load()(*args)


@cache
def has_flashinfer() -> bool:
    """Whether FlashInfer can be imported here."""
    return importlib.util.find_spec("flashinfer") is not None
