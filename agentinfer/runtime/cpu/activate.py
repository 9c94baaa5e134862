"""Entry point `sglang.srt.platforms`: decides whether our CPU platform serves this process, and prepares the process.

SGLang calls `activate` in every process (launcher, scheduler, detokenizer) while it imports
`sglang.srt.utils.common`, before the first module that needs `sgl_kernel` or `torchvision`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import sys
from collections.abc import MutableMapping

logger = logging.getLogger(__name__)

PLATFORM_CLASS = "agentinfer.runtime.cpu.platform.AgentCpuPlatform"

# Set only where the user set nothing; the spawned scheduler inherits them.
ENVIRONMENT_DEFAULTS = {
    # Stock helpers are decorated with @torch.compile; without a GPU that is inductor and g++ inside the first
    # request (8 s instead of 1 s), for code that then decodes 25% slower.
    "TORCHDYNAMO_DISABLE": "1",
    # Idle OpenMP threads spin by default. With a thread a core, any other busy process, our own HTTP server
    # included, then stalls every parallel region: prefill fell from 1,443 to 44 tokens/s beside one busy core.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def activate() -> str | None:
    """Returns the dotted path of our platform class, or None to leave the process to stock SGLang.

    None when an accelerator or a real `sgl_kernel` is there, when SGLANG_USE_CPU_ENGINE is set to anything but 1, and
    on processors SGLang's CPU engine does not know. Otherwise sets the environment defaults above and installs the
    stand-ins for `sgl_kernel` and `torchvision`, each only where no real package can be imported, and the log filters.
    """
    obstacle = reason_to_stay_off(os.environ)
    if obstacle is not None:
        logger.debug("agentinfer CPU platform stays off: %s", obstacle)
        return None

    apply_environment_defaults(os.environ)
    if os.environ["TORCHDYNAMO_DISABLE"] == "1" and "torch._dynamo" in sys.modules:
        # torch read the variable when it was imported, which was before us.
        sys.modules["torch._dynamo"].config.disable = True

    from agentinfer.runtime.cpu import kernels, quiet, torchvision_stub

    quiet.install()
    kernels.install()
    torchvision_stub.install()
    return PLATFORM_CLASS


def reason_to_stay_off(environ: MutableMapping[str, str]) -> str | None:
    """Why stock SGLang should serve here, in words, or None when our platform should."""
    wish = environ.get("SGLANG_USE_CPU_ENGINE", "1")
    if wish != "1":
        return f"SGLANG_USE_CPU_ENGINE={wish}"
    if platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64"):
        return f"SGLang's CPU engine does not run on {platform.machine()}"
    accelerator = accelerator_present()
    if accelerator is not None:
        return f"{accelerator} is available"
    from agentinfer.runtime.cpu import kernels

    if kernels.real_sgl_kernel_present():
        return "a real sgl_kernel is installed"
    return None


def accelerator_present() -> str | None:
    """Name of the accelerator torch can use in this process, or None."""
    import torch

    if torch.cuda.is_available():
        return "CUDA" if torch.version.hip is None else "ROCm"
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    for name, package in (("npu", "torch_npu"), ("hpu", "habana_frameworks"), ("musa", "torchada")):
        # These register themselves with torch only once imported.
        if hasattr(torch, name) or importlib.util.find_spec(package) is not None:
            return name
    return None


def apply_environment_defaults(environ: MutableMapping[str, str]) -> None:
    """Sets what the user left unset; never changes a value that is there."""
    environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    spin_settings = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    for name, value in ENVIRONMENT_DEFAULTS.items():
        if name == "OMP_WAIT_POLICY" and any(setting in environ for setting in spin_settings):
            continue
        environ.setdefault(name, value)
