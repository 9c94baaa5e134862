"""A text-only stand-in for torchvision, which has no build that works beside a CPU-only torch and transformers 5.

Serving text needs two things of it: names that `sglang/srt/configs/deepseek_ocr.py` imports and never uses, and an
`AutoImageProcessor` on the transformers module, whose dummy (present when torchvision is absent) refuses `.register()`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

_MODULES = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
_MISSING = "images need torchvision, which is not installed here; this engine serves text only"


def install() -> bool:
    """Puts the stand-in in place and says whether it did; a real torchvision is left alone."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return False
    # Importing this module re-executes the transformers package and so replaces sys.modules["transformers"]. Done
    # first, so that our class lands on the module that stays.
    import transformers.processing_utils  # noqa: F401

    setattr(sys.modules["transformers"], "AutoImageProcessor", TextOnlyImageProcessor)  # noqa: B010
    for name in _MODULES:
        module = _NamesOnly(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    return True


class TextOnlyImageProcessor:
    """Takes registrations, loads nothing."""

    @staticmethod
    def register(*_args: object, **_kwargs: object) -> None:
        """Accepted and forgotten: SGLang registers image processors of its own at import time."""

    @staticmethod
    def from_pretrained(*_args: object, **_kwargs: object) -> None:
        """Raises ImportError: nothing here can process an image."""
        raise ImportError(_MISSING)


class _NamesOnly(types.ModuleType):
    """Any public name can be imported from it; using one raises."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unusable(name)


def _unusable(name: str) -> type:
    def refuse(self: object, *_args: object, **_kwargs: object) -> None:
        raise ImportError(f"torchvision.{name}: {_MISSING}")

    return _NamesOnlyType(name, (), {"__init__": refuse})


class _NamesOnlyType(type):
    """Class attributes (enum members such as InterpolationMode.BICUBIC are read at import time) are plain markers."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"
