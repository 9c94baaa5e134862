"""Run by `test_kernels_triton.py` in a process of its own: our greedy walk against SGLang's Triton kernel."""

from __future__ import annotations

import json
import sys

import torch
from sglang.kernels.ops.speculative.spec_tree import verify_tree_greedy_kernel_triton

from agentinfer.kernels import tree_layout, verify_greedy
from agentinfer.kernels.example_trees import distinct_siblings, random_parents


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    accepted = 0
    batches = 20
    for _ in range(batches):
        batch_size, width = 2, int(torch.randint(2, 7, (1,), generator=generator))
        parents = random_parents("tree", batch_size, width, generator)
        candidates = distinct_siblings(parents, 3, generator)
        target = torch.randint(3, (batch_size, width), generator=generator)
        layout = tree_layout(parents, torch.zeros(batch_size, dtype=torch.int64), mask="none", chain=False)
        predict = torch.zeros(batch_size * width, dtype=torch.int32)
        accept_index = torch.full((batch_size, width), -1, dtype=torch.int32)
        num_drafts = torch.empty(batch_size, dtype=torch.int32)
        verify_tree_greedy_kernel_triton[(batch_size,)](
            predict,
            accept_index,
            num_drafts,
            candidates,
            layout.retrieve_index,
            layout.retrieve_next_token,
            layout.retrieve_next_sibling,
            target,
            batch_size=batch_size,
            num_speculative_tokens=width,
            num_draft_tokens=width,
        )
        verified = verify_greedy(candidates, target, parents)
        assert torch.equal(verified.predict, predict), (verified.predict, predict)
        assert torch.equal(verified.accept_index, accept_index), (verified.accept_index, accept_index)
        assert torch.equal(verified.accept_lens, num_drafts + 1), (verified.accept_lens, num_drafts)
        accepted += int(num_drafts.sum())
    json.dump({"compared": batches, "accepted_drafts": accepted}, sys.stdout)


if __name__ == "__main__":
    main()
