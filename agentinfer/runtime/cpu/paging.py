"""Page sizes above one: what upstream's two triton allocation kernels compute, for tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def alloc_extend(
    prefix_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    last_loc: torch.Tensor,
    free_pages: torch.Tensor,
    out_indices: torch.Tensor,
    batch_size_upper: int,
    page_size: int,
) -> None:
    """Fills `out_indices` with the slots of tokens prefix_lens..seq_lens: the rest of the last page, then new pages.

    Leaves it untouched when `free_pages` has too few: the caller counts pages itself and gives up.
    """
    from sglang.srt.mem_cache.allocator.paged import alloc_extend_naive

    pages_before = (prefix_lens + page_size - 1) // page_size
    pages_after = (seq_lens + page_size - 1) // page_size
    if int((pages_after - pages_before).sum()) > free_pages.numel():
        return
    alloc_extend_naive(
        prefix_lens.long(), seq_lens.long(), last_loc.long(), free_pages, out_indices, page_size, out_indices.device
    )


def alloc_decode(
    seq_lens: torch.Tensor,
    last_loc: torch.Tensor,
    free_pages: torch.Tensor,
    out_indices: torch.Tensor,
    batch_size_upper: int,
    page_size: int,
) -> None:
    """Fills `out_indices` with one slot a sequence, `seq_lens` counting it: the next one, or the first of a new page.

    Leaves it untouched when `free_pages` has too few.
    """
    opens_page = (seq_lens - 1) % page_size == 0
    num_new = int(opens_page.sum())
    if num_new > free_pages.numel():
        return
    out_indices.copy_(last_loc.long() + 1)
    out_indices[opens_page] = free_pages[:num_new].to(out_indices.dtype) * page_size


class Launchable:
    """A function that is started as triton kernels are: `kernel[grid](*arguments)`."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.function


def install() -> None:
    """Puts the two in the allocators' module namespaces.

    By assignment: hooks wrap functions, and these names are bound to kernel objects which the allocators subscript.
    """
    from sglang.srt.mem_cache.allocator import paged, unified_sub_pool

    for module in (paged, unified_sub_pool):
        module.alloc_extend_kernel = Launchable(alloc_extend)
        module.alloc_decode_kernel = Launchable(alloc_decode)
