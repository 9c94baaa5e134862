"""Moving data in place: KV rows of every layer after a verify step, and input ids by one token for a draft model."""

from __future__ import annotations

import ctypes

import numpy as np
import torch


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor, strides: torch.Tensor, tgt_loc: torch.Tensor, src_loc: torch.Tensor
) -> None:
    """Copies row `src_loc[i]` to row `tgt_loc[i]` in each buffer, as if all rows were read before any is written.

    `data_ptrs` are base addresses, one a K or V buffer, and `strides` the bytes of one row in each. The buffers
    belong to the KV pool, which outlives the call.
    """
    target, source = tgt_loc.numpy(), src_loc.numpy()
    moved = target != source
    target, source = target[moved], source[moved]
    if target.size == 0:
        return
    num_rows = int(max(target.max(), source.max())) + 1
    for address, row_bytes in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        memory = (ctypes.c_uint8 * (num_rows * row_bytes)).from_address(address)
        rows = np.frombuffer(memory, dtype=np.uint8).reshape(num_rows, row_bytes)
        rows[target] = rows[source]


def rotate_input_ids_cpu(
    input_ids: torch.Tensor,
    extend_start_loc: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    topk_index: torch.Tensor,
    select_index: torch.Tensor | None = None,
) -> None:
    """Shifts each request's ids left by one and puts its new token last, or at `select_index` (absolute) if given."""
    new_tokens = topk_index.flatten()
    for index, (start, length) in enumerate(zip(extend_start_loc.tolist(), extend_seq_lens.tolist(), strict=True)):
        if length <= 0:
            continue
        input_ids[start : start + length - 1] = input_ids[start + 1 : start + length].clone()
        position = start + length - 1 if select_index is None else int(select_index[index])
        input_ids[position] = new_tokens[index]
