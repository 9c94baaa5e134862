"""The CPU as an SGLang platform: upstream's own, with defaults that suit the plain command on a small machine."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from sglang.srt.platforms.cpu import CpuSRTPlatform

logger = logging.getLogger(__name__)

# Of the memory that is free before the weights are loaded. Upstream's default is 70% or more, which on a machine that
# is also the client's, or runs a second engine, leaves nothing.
KV_SHARE_OF_FREE_MEMORY = 0.25
# A decode step of eight rows takes 1.6 times that of one, and more rows gain little: room for eight requests at half
# the context each. The whole cache is touched at start-up, at about a second for 0.3 GB on a small machine.
USEFUL_FULL_CONTEXTS = 4

_CGROUP = Path("/sys/fs/cgroup")


class AgentCpuPlatform(CpuSRTPlatform):  # type: ignore[misc]
    """What `activate` names. Its hooks are installed by `agentinfer.runtime.cpu.hooks`."""

    def get_default_attention_backend(self) -> str:
        """`torch_native`, the name our backend is registered under."""
        return "torch_native"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Fills in flags the user left unset, and says which. Called once a launch, before memory is planned."""
        chosen = choose_defaults(server_args, kv_cell_bytes(server_args), context_len(server_args), free_memory_bytes())
        for name, value in chosen.items():
            setattr(server_args, name, value)
        if chosen:
            flags = " ".join(_as_flag(name, value) for name, value in chosen.items())
            logger.info("CPU engine (no accelerator found); flags left unset become: %s", flags)


def choose_defaults(
    server_args: Any, cell_bytes: int | None, context_tokens: int | None, free_bytes: int
) -> dict[str, object]:
    """Flag name -> value for what the user left unset.

    `cell_bytes`: KV bytes a token takes over all layers and ranks, None if unknown; `context_tokens`: the model's
    context. The KV cache gets a share of the free memory, but no more than what as many full contexts as are useful
    need, and at least one context if half of the free memory holds it.
    """
    user = _Given(server_args)
    chosen: dict[str, object] = {}
    if user.left_unset("attention_backend"):
        chosen["attention_backend"] = "torch_native"
    if user.left_unset("max_total_tokens") and cell_bytes and context_tokens:
        affordable = int(free_bytes * KV_SHARE_OF_FREE_MEMORY) // cell_bytes
        useful = context_tokens * (server_args.max_running_requests or USEFUL_FULL_CONTEXTS)
        one_context = min(context_tokens, free_bytes // 2 // cell_bytes)
        chosen["max_total_tokens"] = max(min(affordable, useful), one_context)
    if user.left_unset("sleep_on_idle"):
        # An idle scheduler otherwise spins on a core that the HTTP server, or a second engine, needs.
        chosen["sleep_on_idle"] = True
    if server_args.enable_hierarchical_cache:
        # The other transfer backends are CUDA kernels, and the direct one takes this layout.
        if server_args.hicache_io_backend != "direct":
            chosen["hicache_io_backend"] = "direct"
        if server_args.hicache_mem_layout != "layer_first":
            chosen["hicache_mem_layout"] = "layer_first"
    return chosen


def kv_cell_bytes(server_args: Any) -> int | None:
    """Bytes of keys and values one token takes over all layers and tensor-parallel ranks; None if it cannot be told."""
    model = _model_config(server_args)
    if model is None:
        return None
    item_bytes = 1 if "fp8" in str(server_args.kv_cache_dtype) else model.dtype.itemsize
    heads = model.get_num_kv_heads(server_args.tp_size) * server_args.tp_size
    return int(model.num_attention_layers * heads * (model.head_dim + model.v_head_dim) * item_bytes)


def context_len(server_args: Any) -> int | None:
    """The context the server will offer, in tokens; None if it cannot be told."""
    model = _model_config(server_args)
    return None if model is None else int(model.context_len)


def free_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """What this process may still allocate: the machine's free memory, or less where a container's limit is closer."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        # File pages count as used but are given back under pressure.
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    if limit == "max":
        return free
    return max(0, min(free, int(limit) - used + int(stat.get("inactive_file", 0))))


@dataclass(frozen=True, slots=True)
class _Given:
    """What the user gave, as opposed to what earlier resolution steps filled in."""

    server_args: Any

    def left_unset(self, name: str) -> bool:
        raw = getattr(self.server_args, "_raw_input", None) or {}
        value = raw[name] if name in raw else getattr(self.server_args, name)
        return value is None or value is False


def _as_flag(name: str, value: object) -> str:
    flag = f"--{name.replace('_', '-')}"
    return flag if value is True else f"{flag} {value}"


def _model_config(server_args: Any) -> Any | None:
    from sglang.srt.arg_groups.model_override_base import model_config_of

    # Upstream passes a recorder of assignments around a view of the arguments; the model's configuration is cached on
    # the arguments themselves, which only the view leads to.
    view = getattr(server_args, "_cfg", server_args)
    if os.fspath(view.model_path).lower() in ("none", "dummy"):
        return None
    try:
        return model_config_of(view)
    except Exception as error:  # any reason a model cannot be read is reported, better, when it is loaded
        logger.debug("model configuration unknown, KV cache size left to SGLang: %s", error)
        return None
