"""Our ops on a GPU against SGLang's kernels and against FlashInfer's masks."""

from __future__ import annotations

import pytest
import torch

from agentinfer.kernels import tree_layout, verify_greedy
from agentinfer.kernels.example_trees import distinct_siblings, random_parents


@pytest.mark.sglang
@pytest.mark.parametrize("seed", range(5))
def test_greedy_walk_and_links_equal_sglangs(seed, gpu):
    tree_ops = pytest.importorskip("sglang.kernels.ops.speculative.tree")
    generator = torch.Generator().manual_seed(seed)
    batch_size, width = 6, 12
    parents = random_parents("tree", batch_size, width, generator)
    # SGLang's masks know no padding: hang it below the root.
    parents[:, 1:][parents[:, 1:] < 0] = 0
    candidates = distinct_siblings(parents, 20, generator).to(gpu)
    target = torch.randint(20, (batch_size, width), generator=generator).to(gpu)
    context_lens = torch.randint(200, (batch_size,), generator=generator).to(gpu)
    parents = parents.to(gpu)
    layout = tree_layout(parents, context_lens, chain=False)

    positions = torch.empty(batch_size * width, dtype=torch.int64, device=gpu)
    index, next_token, next_sibling = torch.full((3, batch_size, width), -1, dtype=torch.int64, device=gpu)
    tree_ops.reconstruct_indices_from_tree_mask(
        layout.mask.view(-1), context_lens, positions, index, next_token, next_sibling, batch_size, width
    )
    assert torch.equal(layout.positions, positions)
    assert torch.equal(layout.retrieve_index, index)
    assert torch.equal(layout.retrieve_next_token, next_token)
    assert torch.equal(layout.retrieve_next_sibling, next_sibling)

    predict = torch.zeros(batch_size * width, dtype=torch.int32, device=gpu)
    accept_index = torch.full((batch_size, width), -1, dtype=torch.int32, device=gpu)
    num_drafts = torch.empty(batch_size, dtype=torch.int32, device=gpu)
    tree_ops.verify_tree_greedy(predict, accept_index, num_drafts, candidates, index, next_token, next_sibling, target)
    verified = verify_greedy(candidates, target, parents)
    assert torch.equal(verified.predict, predict)
    assert torch.equal(verified.accept_index, accept_index)
    assert torch.equal(verified.accept_lens, num_drafts + 1)


def test_packed_mask_is_flashinfers_packing(gpu, flashinfer):
    generator = torch.Generator().manual_seed(0)
    parents = random_parents("tree", 5, 7, generator).to(gpu)
    context_lens = torch.randint(300, (5,), generator=generator).to(gpu)
    tree = tree_layout(parents, context_lens, mask="tree", chain=False).mask
    layout = tree_layout(parents, context_lens, mask="packed", chain=False)
    whole = [
        torch.cat([torch.ones(7, length, dtype=torch.bool, device=gpu), tree[b]], dim=1).flatten()
        for b, length in enumerate(context_lens.tolist())
    ]
    ends = torch.tensor([len(bits) for bits in whole], device=gpu).cumsum(0)
    packed, indptr = flashinfer.segment_packbits(
        torch.cat(whole), torch.nn.functional.pad(ends, (1, 0)).int(), bitorder="little"
    )
    assert torch.equal(layout.packed_indptr, indptr)
    assert torch.equal(layout.packed_mask[: len(packed)], packed)


@pytest.mark.parametrize("form", ["packed", "chain"])
def test_flashinfers_prefill_attends_along_the_trees(form, gpu, flashinfer):
    """Attention over random keys: the packed mask for trees, causal for chains, against torch with the whole mask."""
    generator = torch.Generator().manual_seed(0)
    batch_size, width, heads, kv_heads, dim = 3, 8, 4, 2, 64
    shape = "tree" if form == "packed" else "chain"
    parents = random_parents(shape, batch_size, width, generator).to(gpu)
    context_lens = torch.tensor([70, 3, 141], device=gpu)
    kv_lens = (context_lens + width).tolist()
    kv_indptr = torch.tensor([0, *kv_lens], device=gpu).cumsum(0).int()
    qo_indptr = (torch.arange(batch_size + 1, device=gpu) * width).int()
    query = torch.randn(batch_size * width, heads, dim, generator=generator).to(gpu, torch.float16)
    key, value = torch.randn(2, sum(kv_lens), kv_heads, dim, generator=generator).to(gpu, torch.float16)

    layout = tree_layout(parents, context_lens, mask="packed")
    assert layout.is_chain is (form == "chain")
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=gpu)
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD", backend="fa2")
    wrapper.plan(
        qo_indptr,
        kv_indptr,
        heads,
        kv_heads,
        dim,
        packed_custom_mask=layout.packed_mask,
        causal=layout.is_chain,
        q_data_type=torch.float16,
    )
    if layout.packed_indptr is not None:
        # `plan` takes offsets in bits for a mask that comes packed, where the kernel reads bytes.
        wrapper._mask_indptr_buf = layout.packed_indptr
    attended = wrapper.run(query, key, value).float()

    tree = tree_layout(parents, context_lens, mask="tree", chain=False).mask
    for b, length in enumerate(context_lens.tolist()):
        rows, columns = slice(b * width, (b + 1) * width), slice(int(kv_indptr[b]), int(kv_indptr[b + 1]))
        mask = torch.cat([torch.ones(width, length, dtype=torch.bool, device=gpu), tree[b]], dim=1)
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[rows].transpose(0, 1).float(),
            key[columns].transpose(0, 1).float().repeat_interleave(heads // kv_heads, 0),
            value[columns].transpose(0, 1).float().repeat_interleave(heads // kv_heads, 0),
            attn_mask=mask,
        ).transpose(0, 1)
        # float16 keys and values: half a percent of values of size one.
        torch.testing.assert_close(attended[rows], expected, atol=5e-3, rtol=1e-2)
