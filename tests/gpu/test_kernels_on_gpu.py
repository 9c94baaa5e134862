"""Ops of `agentinfer.kernels` on a GPU: specs, distribution, launches that do not wait, and CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from agentinfer.kernels import Sampling, sampling_weights, tree_layout, verify_greedy, verify_sampled
from agentinfer.kernels.check import SPECS
from agentinfer.kernels.dispatch import has_flashinfer
from agentinfer.kernels.example_trees import random_parents
from tests.sampled_outcomes import ALPHA, WIDTH, new_tokens, p_value

CASES = [
    pytest.param(spec, name, case, id=f"{spec.name}-{name}-{case.name}")
    for spec in SPECS
    for name in spec.on_gpu
    for case in spec.cases
]


@pytest.mark.parametrize(("spec", "implementation", "case"), CASES)
def test_gpu_equals_reference(spec, implementation, case, gpu):
    if implementation == "flashinfer" and not has_flashinfer():
        pytest.skip("FlashInfer is not installed")
    for seed in range(5):
        spec.check(case, implementation, gpu, seed)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_large_inputs_equal_the_cpu(spec, gpu):
    """The benchmark's sizes, with what the device chooses by default."""
    for case in spec.measured:
        spec.check(case, None, gpu)


@pytest.mark.parametrize("is_chain", [False, True], ids=["trees", "chains"])
def test_sampled_verification_keeps_the_targets_distribution(is_chain, gpu):
    def rule(tokens, parents, probabilities, coins):
        runs = len(coins)
        weights = probabilities.to(gpu).expand(runs, -1, -1)
        return new_tokens(
            verify_sampled(
                tokens.to(gpu).expand(runs, -1), weights, coins[:, :WIDTH].to(gpu), parents.to(gpu).expand(runs, -1)
            )
        )

    assert p_value(rule, is_chain, seed=1) > ALPHA


def test_flashinfers_chain_sampling_keeps_it_too(gpu, flashinfer):
    from agentinfer.kernels.verify_sampled.flashinfer_chain import verify_sampled_chain_flashinfer

    generator = torch.Generator(gpu).manual_seed(1)

    def rule(tokens, parents, probabilities, coins):
        runs = len(coins)
        probs = probabilities.to(gpu).expand(runs, -1, -1).contiguous()
        return new_tokens(verify_sampled_chain_flashinfer(tokens.to(gpu).expand(runs, -1), probs, generator))

    assert p_value(rule, is_chain=True, seed=1) > ALPHA


def test_a_step_never_waits_for_the_device(gpu):
    generator = torch.Generator().manual_seed(0)
    parents = random_parents("tree", 4, 8, generator).to(gpu)
    candidates = torch.randint(9, (4, 8), generator=generator).to(gpu)
    context_lens = torch.tensor([100, 2000, 5, 31]).to(gpu)
    logits = torch.randn(32, 1000, generator=generator).to(gpu)
    coins = torch.rand(4, 8, generator=generator).to(gpu)
    sampling = Sampling(torch.ones(32, device=gpu), torch.full((32,), 40, device=gpu), torch.full((32,), 0.9).to(gpu))

    def step() -> None:
        tree_layout(parents, context_lens, mask="packed", chain=False, context_lens_sum=2136)
        verify_greedy(candidates, logits.argmax(-1).view(4, 8), parents)
        weights = sampling_weights(logits, sampling).view(4, 8, 1000)
        verify_sampled(candidates, weights, coins, parents)

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_greedy_verification_replays_in_a_cuda_graph(gpu):
    generator = torch.Generator().manual_seed(0)
    parents = random_parents("tree", 4, 8, generator).to(gpu)
    candidates, target = torch.zeros(2, 4, 8, dtype=torch.int64, device=gpu)
    verify_greedy(candidates, target, parents)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        verified = verify_greedy(candidates, target, parents)
    for _ in range(3):
        candidates.copy_(torch.randint(2, (4, 8), generator=generator))
        target.copy_(torch.randint(2, (4, 8), generator=generator))
        graph.replay()
        expected = verify_greedy(candidates.cpu(), target.cpu(), parents.cpu(), implementation="reference")
        assert torch.equal(verified.predict.cpu(), expected.predict)
        assert torch.equal(verified.accept_index.cpu(), expected.accept_index)
