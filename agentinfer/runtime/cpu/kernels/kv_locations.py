"""Which KV slot belongs to which token: rows of the request-to-slot table, and the slots of accepted tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Writes table[row, start:end) of each request from consecutive pieces of `out_cache_loc`. Fills `req_to_token`."""
    for span, piece in _spans(req_to_token, req_pool_indices, start_offset, end_offset, out_cache_loc):
        span.copy_(piece)


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Reads table[row, start:end) of each request into consecutive pieces of `out_cache_loc`; the rest stays."""
    for span, piece in _spans(req_to_token, req_pool_indices, start_offset, end_offset, out_cache_loc):
        piece.copy_(span)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
) -> None:
    """Reads the `topk * steps` slots behind each request's sequence into its fixed-size piece of `out_cache_loc`."""
    length = topk * speculative_num_steps
    for index, (row, start) in enumerate(zip(req_pool_indices.tolist(), seq_lens.tolist(), strict=True)):
        piece = req_to_token[row, start : start + length]
        out_cache_loc[index * length : (index + 1) * length] = piece.to(out_cache_loc.dtype)


def fill_bonus_tokens_cpu(
    accept_tokens: torch.Tensor, accept_lens: torch.Tensor, bonus_tokens: torch.Tensor, accept_stride: int
) -> None:
    """Writes each request's last accepted token; `accept_lens` counts it, `accept_stride` is a request's row width."""
    last = torch.arange(accept_lens.shape[0]) * accept_stride + accept_lens.long() - 1
    bonus_tokens.copy_(accept_tokens.flatten()[last])


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor, out_cache_loc: torch.Tensor, accept_out_cache_loc: torch.Tensor
) -> None:
    """Writes the slots of accepted tokens, in order and without gaps; -1 in `accept_index` marks one not accepted."""
    accepted = accept_index.flatten()
    slots = out_cache_loc[accepted[accepted >= 0].long()]
    accept_out_cache_loc[: slots.shape[0]] = slots.to(accept_out_cache_loc.dtype)


def _spans(
    table: torch.Tensor, rows: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, slots: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of table[row, start:end) of each request, and of the consecutive piece of `slots` that belongs to it."""
    taken = 0
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
        length = end - start
        yield table[row, start:end], slots[taken : taken + length]
        taken += length
