"""Makes Triton launches of this process compile for a GPU that need not be there, and stop before running.

A kernel that the interpreter runs may still be refused by the compiler; this finds out without a GPU.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class _NoDevice:
    """The part of a Triton driver that compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(capability: int) -> None:
    """Launches compile for CUDA compute `capability` (90 for 9.0) from now on, down to machine code, and do not run."""
    triton.runtime.driver.set_active(_NoDevice(capability))
    launch = JITFunction.run

    def compile_instead(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiled = launch(self, *args, **{**kwargs, "warmup": True})
        # Compiling may be left to a later moment; the machine code is what shows that it went through.
        assert compiled.asm["cubin"], f"{self.__name__}: no machine code"
        return compiled

    JITFunction.run = compile_instead
