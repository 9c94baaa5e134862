"""Sampling weights against SGLang's own torch sampler: the distribution of plain decoding."""

from __future__ import annotations

import pytest
import torch

from agentinfer.kernels import Sampling, sampling_weights
from agentinfer.kernels.sampling_weights.spec import SPEC

pytestmark = pytest.mark.sglang


@pytest.mark.parametrize("implementation", SPEC.on_cpu)
@pytest.mark.parametrize("with_min_p", [False, True], ids=["top-k and top-p", "min-p too"])
def test_weights_are_what_sglangs_sampler_draws_from(implementation, with_min_p):
    sampler = pytest.importorskip("sglang.srt.layers.sampler")
    generator = torch.Generator().manual_seed(0)
    rows, vocab_size = 24, 3000
    logits = torch.randn(rows, vocab_size, generator=generator) * 4
    temperature = torch.rand(rows, 1, generator=generator) + 0.5
    top_k = torch.tensor([1, 5, 50, 1 << 30])[torch.randint(4, (rows,), generator=generator)]
    top_p = torch.tensor([0.2, 0.7, 0.95, 1.0])[torch.randint(4, (rows,), generator=generator)]
    min_p = torch.tensor([0.0, 0.05, 0.2])[torch.randint(3, (rows,), generator=generator)]
    _, kept, order, _ = sampler.top_k_top_p_min_p_sampling_from_probs_torch(
        torch.softmax(logits / temperature, dim=-1),
        top_k,
        top_p,
        min_p,
        with_min_p,
        None,
        None,
        return_filtered_probs=True,
    )
    expected = torch.zeros(rows, vocab_size).scatter_(-1, order.long(), kept)
    ours = sampling_weights(
        logits, Sampling(temperature, top_k, top_p, min_p if with_min_p else None), implementation=implementation
    )
    assert torch.equal(ours > 0, expected > 0)
    torch.testing.assert_close(ours / ours.sum(-1, keepdim=True), expected / expected.sum(-1, keepdim=True))
