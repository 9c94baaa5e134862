"""Ops of `agentinfer.kernels` on the CPU: every case of every spec, and what a spec cannot say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from agentinfer.kernels import (
    KernelInputError,
    Sampling,
    is_chain,
    sampling_weights,
    tree_layout,
    verify_greedy,
    verify_sampled,
    verify_sampled_logits,
)
from agentinfer.kernels.check import SPECS, checks
from agentinfer.kernels.example_trees import random_parents
from agentinfer.kernels.verify_sampled.cpu import draw
from agentinfer.runtime.cpu.kernels.tree import reconstruct_indices_from_tree_mask, verify_tree_greedy_cpu

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("spec", "implementation", "case"),
    [
        pytest.param(spec, name, case, id=f"{spec.name}-{name}-{case.name}")
        for spec, name, device, case in checks(None)
        if device == CPU
    ],
)
def test_cpu_equals_reference(spec, implementation, case):
    for seed in range(5):
        spec.check(case, implementation, CPU, seed)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_check_notices_a_wrong_result(spec):
    inputs = spec.make_inputs(spec.cases[1], torch.Generator().manual_seed(0))
    right = spec.call(inputs, "reference")
    for name in right:
        wrong = {other: tensor.clone() for other, tensor in right.items()}
        wrong[name].view(-1)[0] = 1 - wrong[name].view(-1)[0].to(torch.float32)
        with pytest.raises(AssertionError):
            spec.compare(wrong, right)


def test_greedy_walk_by_hand():
    #        0(5)
    #       /    \        the target says 7 behind the root, 9 behind node 2, 1 behind node 3
    #    1(6)    2(7)
    #             |
    #            3(9)
    verified = verify_greedy(torch.tensor([[5, 6, 7, 9]]), torch.tensor([[7, 0, 9, 1]]), torch.tensor([[-1, 0, 0, 2]]))
    assert verified.accept_index.tolist() == [[0, 2, 3, -1]]
    assert verified.accept_lens.tolist() == [3]
    assert verified.predict.tolist() == [7, 0, 9, 1]


@pytest.mark.parametrize("seed", range(20))
def test_greedy_and_links_are_what_the_engine_stand_in_computes(seed):
    """The stand-in has the engine's own call signature and was written without this code."""
    generator = torch.Generator().manual_seed(seed)
    parents = random_parents("tree", 4, 9, generator)
    # The engine's masks know no padding: hang it below the root.
    parents[:, 1:][parents[:, 1:] < 0] = 0
    candidates, target = torch.randint(4, (2, 4, 9), generator=generator)
    context_lens = torch.randint(50, (4,), generator=generator)
    layout = tree_layout(parents, context_lens, chain=False)
    positions = torch.empty(36, dtype=torch.int64)
    index, next_token, next_sibling = torch.empty(3, 4, 9, dtype=torch.int64)
    assert layout.mask is not None
    reconstruct_indices_from_tree_mask(
        layout.mask.view(-1), context_lens, positions, index, next_token, next_sibling, 4, 9
    )
    assert torch.equal(layout.positions, positions)
    assert torch.equal(layout.retrieve_index, index)
    assert torch.equal(layout.retrieve_next_token, next_token)
    assert torch.equal(layout.retrieve_next_sibling, next_sibling)

    predict = torch.zeros(36, dtype=torch.int32)
    accept_index = torch.full((4, 9), -1, dtype=torch.int32)
    num_drafts = torch.empty(4, dtype=torch.int32)
    verify_tree_greedy_cpu(predict, accept_index, num_drafts, candidates, index, next_token, next_sibling, target)
    verified = verify_greedy(candidates, target, parents)
    assert torch.equal(verified.predict, predict)
    assert torch.equal(verified.accept_index, accept_index)
    assert torch.equal(verified.accept_lens, num_drafts + 1)


@pytest.mark.parametrize("seed", range(10))
def test_packed_mask_is_numpys_packing_of_the_whole_mask(seed):
    generator = torch.Generator().manual_seed(seed)
    parents = random_parents("tree", 3, 7, generator)
    context_lens = torch.randint(0, 40, (3,), generator=generator)
    tree = tree_layout(parents, context_lens, mask="tree", chain=False).mask
    layout = tree_layout(parents, context_lens, mask="packed", chain=False)
    assert tree is not None
    assert layout.packed_mask is not None
    assert layout.packed_indptr is not None
    for b, (start, end) in enumerate(itertools.pairwise(layout.packed_indptr.tolist())):
        whole = np.ones((7, int(context_lens[b]) + 7), dtype=bool)
        whole[:, int(context_lens[b]) :] = tree[b].numpy()
        assert np.array_equal(np.packbits(whole, bitorder="little"), layout.packed_mask[start:end].numpy())


@pytest.mark.parametrize(
    ("parents", "expected"),
    [([[-1, 0, 1]], True), ([[-1, 0, -1]], True), ([[-1, 0, 0]], False), ([[-1, 0, 1], [-1, 0, 0]], False)],
    ids=["chain", "padded chain", "fork", "one fork of two"],
)
def test_chains_are_told_from_trees(parents, expected):
    tensor = torch.tensor(parents, dtype=torch.int32)
    assert is_chain(tensor) is expected
    layout = tree_layout(tensor, torch.zeros(len(parents), dtype=torch.int64))
    assert layout.is_chain is expected
    assert (layout.mask is None) is expected


@pytest.mark.parametrize("seed", range(5))
def test_sampled_tokens_do_not_depend_on_the_draft(seed):
    """With a coin for each position, a step through any draft yields the tokens of drawing one at a time."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size, length = 5, 12
    coins = torch.rand(length, generator=generator)
    by_context: dict[tuple[int, ...], torch.Tensor] = {}

    def weights_behind(context: tuple[int, ...]) -> torch.Tensor:
        return by_context.setdefault(context, torch.rand(vocab_size, generator=generator) ** 3)

    plain: tuple[int, ...] = ()
    while len(plain) < length:
        plain += (int(draw(weights_behind(plain).view(1, -1), coins[len(plain)].view(1))),)

    speculated: tuple[int, ...] = ()
    accepted = 0
    while len(speculated) < length:
        parents = random_parents("tree", 1, 8, generator)
        candidates = torch.randint(vocab_size, (1, 8), generator=generator)
        paths = [speculated]
        for node in range(1, 8):
            paths.append((*paths[int(parents[0, node].clamp(min=0))], int(candidates[0, node])))
        weights = torch.stack([weights_behind(path) for path in paths]).unsqueeze(0)
        left = torch.nn.functional.pad(coins[len(speculated) :], (0, 8))[:8].view(1, 8)
        verified = verify_sampled(candidates, weights, left, parents)
        new = verified.predict[verified.accept_index[0, : verified.accept_lens[0]].long()].tolist()
        accepted += len(new) - 1
        speculated += tuple(new)
    assert accepted > 0
    assert speculated[:length] == plain


def test_logits_and_weights_lead_to_the_same_tokens():
    generator = torch.Generator().manual_seed(0)
    parents = random_parents("tree", 4, 6, generator)
    candidates = torch.randint(30, (4, 6), generator=generator)
    logits = torch.randn(24, 30, generator=generator) * 3
    coins = torch.rand(4, 6, generator=generator)
    sampling = Sampling(
        torch.tensor([0.7, 1.0, 1.3, 1.0]), torch.tensor([5, 1, 30, 30]), torch.tensor([1, 1, 0.8, 1.0])
    )
    lazy = verify_sampled_logits(candidates, logits, sampling, coins, parents)
    rows = torch.arange(4).repeat_interleave(6)
    weights = sampling_weights(logits, sampling.of(rows)).view(4, 6, 30)
    eager = verify_sampled(candidates, weights, coins, parents)
    assert torch.equal(lazy.predict, eager.predict)
    assert torch.equal(lazy.accept_index, eager.accept_index)
    greedy = verify_greedy(candidates, logits.argmax(-1).view(4, 6), parents)
    assert torch.equal(lazy.predict.view(4, 6)[1], greedy.predict.view(4, 6)[1])


def test_greedy_rows_take_the_first_of_tied_tokens():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [3.0, 0.0, 0.0, 3.0]])
    weights = sampling_weights(logits, Sampling(torch.ones(2), torch.ones(2, dtype=torch.int32)))
    assert weights.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("coin", [0.0, 0.5, 1.0 - 2**-24], ids=["least", "middle", "greatest"])
def test_tokens_without_weight_are_never_drawn(coin):
    weights = torch.tensor([[0.0, 0.0, 1e-7, 0.0, 3.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    drawn = draw(weights, torch.full((2,), coin))
    assert (weights.gather(1, drawn.view(-1, 1)) > 0).all()


TOKENS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: verify_greedy(TOKENS, TOKENS[:, :2]), r"target: expected \[2, 3\], got \[2, 2\]"),
        (lambda: verify_greedy(TOKENS.float(), TOKENS), "candidates: expected integers"),
        (lambda: verify_greedy(TOKENS, TOKENS, TOKENS[:1]), r"parents: expected integers \[2, 3\]"),
        (lambda: verify_greedy(TOKENS, TOKENS, num_nodes=torch.ones(3)), r"num_nodes: expected \[2\], got \[3\]"),
        (lambda: verify_greedy(TOKENS, TOKENS, implementation="cuda"), "implementation 'cuda' is unknown; there are"),
        (lambda: verify_sampled(TOKENS, torch.ones(2, 4, 9), torch.ones(2, 3)), r"weights: expected \[2, 3\] in front"),
        (lambda: verify_sampled(TOKENS, torch.ones(2, 3, 9), torch.ones(2)), r"coins: expected \[2, 3\]"),
        (lambda: tree_layout(TOKENS, torch.zeros(3)), r"context_lens: expected \[2\], got \[3\]"),
        (lambda: tree_layout(TOKENS, torch.zeros(2), mask="full"), "mask: expected none, tree or packed, got 'full'"),
        (lambda: sampling_weights(torch.ones(2, 5), Sampling(torch.ones(3))), r"logits: expected \[3, vocab\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs_that_do_not_fit_are_refused(call, message):
    with pytest.raises(KernelInputError, match=message):
        call()
