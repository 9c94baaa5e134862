"""Sampled verification on a GPU: one program a request draws along its path, two passes over the vocabulary a token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from agentinfer.kernels.tree import Verified
from agentinfer.kernels.verify_greedy.triton_kernel import empty_verified

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
    verified = empty_verified(candidates)
    if batch_size:
        vocab_size = weights.shape[-1]
        _verify_sampled_kernel[(batch_size,)](
            candidates.contiguous(),
            weights.contiguous(),
            coins.contiguous(),
            candidates if parents is None else parents.contiguous(),
            candidates if num_nodes is None else num_nodes.contiguous(),
            verified.predict,
            verified.accept_lens,
            verified.accept_index,
            width,
            vocab_size,
            IS_CHAIN=parents is None,
            IS_FULL=num_nodes is None,
            BLOCK=triton.next_power_of_2(width),
            BLOCK_VOCAB=min(BLOCK_VOCAB, triton.next_power_of_2(vocab_size)),
            num_warps=8,
        )
    return verified


@triton.jit
def _verify_sampled_kernel(
    candidates: tl.tensor,
    weights: tl.tensor,
    coins: tl.tensor,
    parents: tl.tensor,
    num_nodes: tl.tensor,
    predict: tl.tensor,
    accept_lens: tl.tensor,
    accept_index: tl.tensor,
    width: tl.tensor,
    vocab_size: tl.tensor,
    IS_CHAIN: tl.constexpr,
    IS_FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
) -> None:
    request = tl.program_id(0)
    nodes = tl.arange(0, BLOCK)
    inside = nodes < width
    rows = request * width + nodes
    tokens = tl.load(candidates + rows, mask=inside, other=0).to(tl.int32)
    parent_of = nodes - 1
    if not IS_CHAIN:
        parent_of = tl.load(parents + rows, mask=inside, other=-1).to(tl.int32)
    real = inside & (nodes > 0)
    if not IS_FULL:
        real = real & (nodes < tl.load(num_nodes + request))

    path = tl.full([BLOCK], -1, tl.int32)
    predicted = tl.zeros([BLOCK], tl.int32)
    node = 0
    length = 0
    while node < BLOCK:
        row = weights + (request * width + node).to(tl.int64) * vocab_size
        coin = tl.load(coins + request * width + length)
        choice = _draw(row, coin, vocab_size, BLOCK_VOCAB)
        path = tl.where(nodes == length, request * width + node, path)
        predicted = tl.where(nodes == node, choice, predicted)
        length += 1
        fits = real & (parent_of == node) & (tokens == choice)
        node = tl.min(tl.where(fits, nodes, BLOCK), axis=0)

    tl.store(predict + rows, predicted, mask=inside)
    tl.store(accept_index + rows, path, mask=inside)
    tl.store(accept_lens + request, length)


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
