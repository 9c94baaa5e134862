"""Puts the CPU engine's parts into SGLang: attention, row-invariant float32 products, paging, HiCache.

`install_if_active` is called by the plugin in every process, under our launcher and under the stock one alike:
without a GPU the engine is what makes stock SGLang run, so it is the baseline too.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from agentinfer.runtime.cpu.hicache import UNPIN_TARGET, unpin
from agentinfer.runtime.cpu.linear import around_linear_apply, around_lm_head
from agentinfer.runtime.cpu.quiet import RESOLVE_TARGET, before_resolving
from agentinfer.runtime.seams import CPU, Seam, hook

logger = logging.getLogger(__name__)

STOCK_ATTENTION_VARIABLE = "AGENTINFER_CPU_STOCK_ATTENTION"

_SRT = "sglang.srt"
_LINEAR = f"{_SRT}.layers.quantization.unquant.UnquantizedLinearMethod.apply"
_LM_HEAD = f"{_SRT}.layers.logits_processor.LogitsProcessor._compute_lm_head"
_ALLOCATORS = f"{_SRT}.mem_cache.allocator"

_seam = functools.partial(Seam, feature=CPU, processes=("scheduler",))

SEAMS = (
    _seam(
        target=f"{_SRT}.layers.attention.attention_registry.register_attention_backend",
        parameters=("name",),
        caller=None,
        reason="our backend takes the name torch_native, which argument checks key off; the last one registered wins",
        door="registry",
    ),
    _seam(
        target=f"{_SRT}.layers.attention.torch_native_backend.TorchNativeAttnBackend",
        parameters=("self", "model_runner"),
        caller=f"{_SRT}.layers.attention.attention_registry.create_torch_native_backend",
        reason="base class: pools, sliding-window slots, encoder layers",
        door="subclass",
    ),
    _seam(
        target=f"{_SRT}.platforms.interface.SRTPlatform.apply_server_args_defaults",
        parameters=("self", "server_args"),
        caller=f"{_SRT}.arg_groups.platform_hook.handle_platform_defaults",
        reason="defaults for a machine without an accelerator",
        door="subclass",
        processes=("launcher",),
    ),
    _seam(
        target=_LINEAR,
        parameters=("self", "layer", "x", "bias"),
        caller=f"{_SRT}.layers.linear.ColumnParallelLinear.forward",
        reason="float32 rows must not depend on the number of rows, or batching and speculation change greedy output",
        door="hook",
    ),
    _seam(
        target=_LM_HEAD,
        parameters=("self", "hidden_states", "lm_head", "embedding_bias"),
        caller=f"{_SRT}.layers.logits_processor.LogitsProcessor._get_logits",
        reason="as for the linear layers: the last product before the argmax",
        door="hook",
    ),
    _seam(
        target=UNPIN_TARGET,
        parameters=(
            "self",
            "device_pool",
            "host_to_device_ratio",
            "host_size",
            "page_size",
            "layout",
            "pin_memory",
            "device",
            "allocator_type",
            "dcp_size",
            "dcp_rank",
            "pool_label",
        ),
        caller=f"{_SRT}.mem_cache.pool_host.mha.MHATokenToKVPoolHost",
        reason="HiCache asks CUDA for pinned staging pages otherwise",
        door="hook",
    ),
    *(
        _seam(
            target=f"{_ALLOCATORS}.paged.{name}",
            parameters=None,
            caller=f"{_ALLOCATORS}.paged.PagedTokenToKVPoolAllocator.{caller}",
            reason="page sizes above 1 allocate in a triton kernel; replaced by assignment, as kernels are subscripted",
            door="call",
        )
        for name, caller in (("alloc_extend_kernel", "alloc_extend"), ("alloc_decode_kernel", "alloc_decode"))
    ),
    _seam(
        target=f"{_SRT}.mem_cache.pool_host.common.ALLOC_MEMORY_FUNCS",
        parameters=None,
        caller=f"{_SRT}.mem_cache.pool_host.mha",
        reason="host pools without CUDA registration",
        door="registry",
    ),
    _seam(
        target=RESOLVE_TARGET,
        parameters=("model_config", "architectures"),
        caller=f"{_SRT}.model_loader.utils.get_model_architecture",
        reason="where the warnings of model files that could not be imported begin to matter",
        door="hook",
    ),
    _seam(
        target=f"{_SRT}.models.registry.logger",
        parameters=None,
        caller=f"{_SRT}.models.registry.import_model_classes",
        reason="warns of each model file that cannot be imported; a filter on it keeps that back",
        door="read",
    ),
)

_installed = False


def install_if_active() -> bool:
    """Installs in this process if our CPU platform is SGLang's current one, and says whether it did. Safe to repeat."""
    from sglang.srt.platforms import current_platform

    from agentinfer.runtime.cpu.platform import AgentCpuPlatform

    if not isinstance(current_platform, AgentCpuPlatform):
        return False
    install()
    return True


def install() -> None:
    """Registers everything in this process, once.

    With AGENTINFER_CPU_STOCK_ATTENTION=1 upstream's attention and float32 products stay: for comparisons.
    Raises SeamError when a hook's row is missing from the seam table.
    """
    global _installed
    if _installed:
        return
    from agentinfer.runtime.cpu import hicache, paging

    hicache.install()
    paging.install()
    if _keeps_stock_attention():
        logger.info("%s=1: upstream's torch_native attention and float32 products", STOCK_ATTENTION_VARIABLE)
    else:
        _register_attention()
        hook(_LINEAR, around_linear_apply, "around")
        hook(_LM_HEAD, around_lm_head, "around")
    hook(UNPIN_TARGET, unpin, "after")
    hook(RESOLVE_TARGET, before_resolving, "before")
    _installed = True


def _register_attention() -> None:
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    @register_attention_backend("torch_native")
    def create(runner: Any) -> Any:
        from agentinfer.runtime.cpu.attention import CpuAttnBackend

        return CpuAttnBackend(runner)


def _keeps_stock_attention() -> bool:
    value = os.environ.get(STOCK_ATTENTION_VARIABLE, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{STOCK_ATTENTION_VARIABLE}={value!r}: expected 0 or 1")
    return value == "1"
