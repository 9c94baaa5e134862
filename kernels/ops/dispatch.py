"""Which implementation of an op runs: by the device of its tensors, unless the caller names one."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

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


@cache
def has_flashinfer() -> bool:
    """Whether FlashInfer can be imported here."""
    return importlib.util.find_spec("flashinfer") is not None
