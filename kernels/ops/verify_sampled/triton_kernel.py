"""Sampled verification on a GPU: every node's token is drawn at once, a program a node; then the greedy walk.

Drawing along the path alone would read fewer rows, one after the other. A row takes two passes over the vocabulary, and
these are what a step waits for, so rows are drawn side by side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from agentinfer.kernels.tree import Verified
from agentinfer.kernels.verify_greedy.triton_kernel import verify_greedy_triton

BLOCK_VOCAB = 4096


def verify_sampled_triton(
    candidates: torch.Tensor,
    weights: torch.Tensor,
    coins: torch.Tensor,
    parents: torch.Tensor | None,
    num_nodes: torch.Tensor | None,
) -> Verified:
    """Contract as `verify_sampled`; never waits for the device."""
    batch_size, width = candidates.shape
    drawn = torch.empty(batch_size, width, dtype=torch.int32, device=candidates.device)
    if batch_size:
        vocab_size = weights.shape[-1]
        _draw_kernel[(batch_size, width)](
            weights.contiguous(),
            coins.contiguous(),
            drawn if parents is None else parents.contiguous(),
            drawn if num_nodes is None else num_nodes.contiguous(),
            drawn,
            width,
            vocab_size,
            IS_CHAIN=parents is None,
            IS_FULL=num_nodes is None,
            BLOCK_VOCAB=min(BLOCK_VOCAB, triton.next_power_of_2(vocab_size)),
            num_warps=8,
        )
    return verify_greedy_triton(candidates, drawn, parents, num_nodes)


@triton.jit
def _draw_kernel(
    weights: tl.tensor,
    coins: tl.tensor,
    parents: tl.tensor,
    num_nodes: tl.tensor,
    drawn: tl.tensor,
    width: tl.tensor,
    vocab_size: tl.tensor,
    IS_CHAIN: tl.constexpr,
    IS_FULL: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
) -> None:
    request = tl.program_id(0)
    node = tl.program_id(1)
    is_real = node >= 0
    depth = node
    if not IS_CHAIN:
        above = tl.load(parents + request * width + node).to(tl.int32)
        is_real = (node == 0) | (above >= 0)
        depth = node * 0
        while above >= 0:
            depth += 1
            above = tl.load(parents + request * width + above).to(tl.int32)
    if not IS_FULL:
        is_real = is_real & (node < tl.load(num_nodes + request))
    # Padding is never reached: its token, like the rest of its row, means nothing.
    columns_used = tl.where(is_real, vocab_size, 0)
    row = weights + (request * width + node).to(tl.int64) * vocab_size
    coin = tl.load(coins + request * width + depth)
    tl.store(drawn + request * width + node, _draw(row, coin, columns_used, BLOCK_VOCAB))


@triton.jit
def _draw(row: tl.tensor, coin: tl.tensor, vocab_size: tl.tensor, BLOCK_VOCAB: tl.constexpr) -> tl.tensor:
    """The first token at which the running sum of `row` passes `coin` times its sum; the last weighing one if none."""
    total = 0.0
    for start in range(0, vocab_size, BLOCK_VOCAB):
        columns = start + tl.arange(0, BLOCK_VOCAB)
        total += tl.sum(tl.load(row + columns, mask=columns < vocab_size, other=0.0), axis=0)
    threshold = coin * total
    before = 0.0
    drawn = vocab_size
    last = 0
    start = 0
    while start < vocab_size:
        columns = start + tl.arange(0, BLOCK_VOCAB)
        weight = tl.load(row + columns, mask=columns < vocab_size, other=0.0)
        passes = (before + tl.cumsum(weight, axis=0) > threshold) & (weight > 0.0)
        drawn = tl.min(tl.where(passes, columns, vocab_size), axis=0)
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, columns, 0), axis=0))
        before += tl.sum(weight, axis=0)
        start = tl.where(drawn < vocab_size, vocab_size, start + BLOCK_VOCAB)
    return tl.where(drawn < vocab_size, drawn, last)
