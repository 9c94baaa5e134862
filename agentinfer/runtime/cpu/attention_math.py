"""Attention over gathered keys with torch's flash kernel, such that a row's bits depend on its sequence alone.

`scaled_dot_product_attention` on a CPU walks the keys in blocks of 512 and computes each block with two matrix
products. Their rounding depends on the products' shapes: on how many keys the last block holds, and on whether there
are fewer than four query rows (a different kernel). So keys are padded to whole blocks and query rows to a multiple
of four, and padding is masked. A masked key contributes an exact zero. Then one token's output is the same, bit for
bit, whether it was computed in a prefill, behind a cached prefix, in a decode step of any batch, or as a row of a
chain verify; measured in float32 and bfloat16, with one thread.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

KEY_BLOCK = 512  # kvSplitSize of aten/src/ATen/native/cpu/FlashAttentionKernel.cpp
QUERY_ROW_MULTIPLE = 4
QUERY_CHUNK = 256  # rows a call; keys above the chunk's last row are skipped, which halves a long prefill

NEVER = float("-inf")


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple


def causal_bias(
    first_query: int,
    num_queries: int,
    key_range: range,
    *,
    window: int | None,
    tree: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """[num_queries, len(key_range)]: 0 where a query may look, -inf where not.

    Queries stand at positions first_query, first_query + 1, ...; a query sees itself, what is before it, and with
    `window` at most that many keys before itself. With `tree` ([num_queries, num_queries] bool, True for ancestors
    and self) the queries are the nodes of a draft tree behind the prefix: a node's position is the prefix length plus
    its depth.
    """
    keys = torch.arange(key_range.start, key_range.stop)
    if tree is None:
        queries = torch.arange(first_query, first_query + num_queries).unsqueeze(1)
        allowed = keys <= queries
        if window is not None:
            allowed &= keys >= queries - window
    else:
        positions = first_query + tree.sum(-1) - 1
        prefix_len = first_query
        allowed = (keys < prefix_len).expand(num_queries, -1).clone()
        if window is not None:
            allowed &= keys >= positions.unsqueeze(1) - window
        node_keys = (keys >= prefix_len) & (keys < prefix_len + num_queries)
        nodes = keys[node_keys] - prefix_len
        visible = tree[:, nodes]
        if window is not None:
            visible = visible & (positions[nodes] >= positions.unsqueeze(1) - window)
        allowed[:, node_keys] = visible
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, NEVER)


def attend_batch(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    scale: float,
    logit_cap: float = 0.0,
) -> torch.Tensor:
    """Sequences with equally many queries and (padded) keys: decode, and verify of a chain or tree.

    queries [batch, n, heads, d], keys and values [batch, num_keys, kv_heads, d], bias [batch, n, num_keys]; returns
    [batch, n, heads, d_value]. The query heads that share a kv head become rows of one product, so nothing is repeated.
    """
    batch, num_queries, num_heads, head_dim = queries.shape
    kv_heads = keys.shape[2]
    group = num_heads // kv_heads
    rows = queries.view(batch, num_queries, kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, kv_heads, group * num_queries, head_dim)
    row_bias = bias.unsqueeze(1) if num_queries == 1 else bias.repeat(1, group, 1).unsqueeze(1)
    num_rows = group * num_queries
    out = _attend(rows, keys.transpose(1, 2), values.transpose(1, 2), row_bias, scale, logit_cap)[:, :, :num_rows]
    out = out.reshape(batch, kv_heads, group, num_queries, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, num_queries, num_heads, -1)


def attend_rows(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    scale: float,
    logit_cap: float = 0.0,
) -> torch.Tensor:
    """Consecutive rows of one sequence: a prefill chunk.

    queries [n, heads, d], keys and values [num_keys, kv_heads, d], bias [n, num_keys]; returns [n, heads, d_value].
    """
    num_queries, num_heads, head_dim = queries.shape
    num_keys, kv_heads, _ = keys.shape
    group = num_heads // kv_heads
    rows = queries.view(num_queries, kv_heads, group, head_dim).permute(1, 2, 0, 3)
    # A kv head stands in for the batch and its keys are shared by stride 0: nothing is copied.
    shared_keys = keys.transpose(0, 1).unsqueeze(1).expand(kv_heads, group, num_keys, -1)
    shared_values = values.transpose(0, 1).unsqueeze(1).expand(kv_heads, group, num_keys, -1)
    out = _attend(rows, shared_keys, shared_values, bias.view(1, 1, num_queries, num_keys), scale, logit_cap)
    return out[:, :, :num_queries].permute(2, 0, 1, 3).reshape(num_queries, num_heads, -1)


def _attend(
    rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float, logit_cap: float
) -> torch.Tensor:
    """[batch, heads, rows (padded), d_value]; bias broadcasts over heads, and over rows where it has one."""
    padding = -rows.shape[2] % QUERY_ROW_MULTIPLE
    if padding:
        rows = torch.cat([rows, rows[:, :, -1:].expand(-1, -1, padding, -1)], dim=2)
        if bias.shape[2] > 1:
            bias = torch.cat([bias, bias[:, :, -1:].expand(-1, -1, padding, -1)], dim=2)
        elif rows.shape[2] - padding == 1:
            bias = bias.expand(-1, -1, rows.shape[2], -1)
    if logit_cap > 0:
        scores = torch.tanh(rows @ keys.transpose(2, 3) * (scale / logit_cap)) * logit_cap + bias
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(rows.dtype) @ values
    return scaled_dot_product_attention(rows, keys, values, attn_mask=bias, scale=scale)
