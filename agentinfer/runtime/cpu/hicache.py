"""HiCache between two regions of host memory: pools without CUDA registration, pages moved by torch.

Works with `--hicache-io-backend direct --hicache-mem-layout layer_first`, which `platform` makes the CPU's default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

UNPIN_TARGET = "sglang.srt.mem_cache.pool_host.base.HostKVCache.__init__"


def allocate(
    dims: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    pin_memory: bool,
    allocator: Any,
    registration_granularity_bytes: int | None = None,
) -> torch.Tensor:
    """Upstream's host allocation without `cudaHostRegister`; the chosen allocator (shared memory, say) is kept."""
    buffer: torch.Tensor = allocator.allocate(dims, dtype=dtype, device=device)
    return buffer


def transfer_kv_direct(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copies the rows `src_indices` of each source buffer to the rows `dst_indices` of its destination."""
    source, target = src_indices.long(), dst_indices.long()
    for src, dst in zip(src_layers, dst_layers, strict=True):
        dst.index_copy_(0, target, src.index_select(0, source))


def unpin(result: None, pool: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER hook on the host pool's constructor: staging pages must not be asked from CUDA's pinned memory."""
    pool.pin_memory = False


def install() -> None:
    """Registers the allocation and the copy for the CPU. `UNPIN_TARGET` is hooked by `hooks`."""
    from sglang.srt.mem_cache.pool_host import common, mha, mla

    common.ALLOC_MEMORY_FUNCS["cpu"] = allocate
    for module in (mha, mla):
        if not hasattr(module, "transfer_kv_direct"):
            module.transfer_kv_direct = transfer_kv_direct
