"""What stock SGLang runs where `agentinfer.kernels` runs, for the same inputs: the peers of `benchmarks.kernels`.

Each peer maps an op's inputs to a function without arguments; what it needs beforehand is made outside that function.
None: it does not run here, or does not know such inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from agentinfer.kernels import tree_layout
from agentinfer.runtime.cpu.kernels import tree as stand_in

Peer = Callable[[dict[str, Any]], Callable[[], Any] | None]


def verify_greedy_cpu(inputs: dict[str, Any]) -> Callable[[], Any] | None:
    """The walk that takes the place of `sgl_kernel.verify_tree_greedy_cpu`, for links already made."""
    return _verify_greedy(inputs, stand_in.verify_tree_greedy_cpu)


def verify_greedy_gpu(inputs: dict[str, Any]) -> Callable[[], Any] | None:
    """`sglang.kernels.ops.speculative.tree.verify_tree_greedy`, with the fills `eagle_sample` does before it."""
    from sglang.kernels.ops.speculative.tree import verify_tree_greedy

    return _verify_greedy(inputs, verify_tree_greedy)


def verify_sampled_gpu(inputs: dict[str, Any]) -> Callable[[], Any] | None:
    """`tree_speculative_sampling_target_only`, with the draft probabilities `eagle_sample` zeroes before it."""
    from sglang.kernels.ops.speculative.sampling import tree_speculative_sampling_target_only

    candidates, weights, coins = inputs["candidates"], inputs["weights"], inputs["coins"]
    probs = weights / weights.sum(-1, keepdim=True)
    links, final = _links(inputs), coins[:, 0].contiguous()
    if links is None:
        return None

    def run() -> None:
        outputs = _outputs(candidates)
        tree_speculative_sampling_target_only(
            *outputs, candidates, *links, coins, final, probs, torch.zeros_like(probs)
        )

    return run


def verify_sampled_chain(inputs: dict[str, Any]) -> Callable[[], Any] | None:
    """FlashInfer's `chain_speculative_sampling` against a one-hot draft; only chains of full width."""
    from agentinfer.kernels.verify_sampled.flashinfer_chain import verify_sampled_chain_flashinfer

    if inputs["parents"] is not None or inputs["num_nodes"] is not None:
        return None
    probs = inputs["weights"] / inputs["weights"].sum(-1, keepdim=True)
    return lambda: verify_sampled_chain_flashinfer(inputs["candidates"], probs)


def verify_sampled_logits_cpu(inputs: dict[str, Any]) -> Callable[[], Any] | None:
    """SGLang's torch sampler on every row, then a walk along what it drew: exact, too."""
    from sglang.srt.layers.sampler import top_k_top_p_min_p_sampling_from_probs_torch

    candidates, sampling = inputs["candidates"], inputs["sampling"]
    batch_size, width = candidates.shape
    rows = sampling.of(torch.arange(batch_size).repeat_interleave(width))
    links = _links(inputs)

    def run() -> None:
        probs = torch.softmax(inputs["logits"] / rows.temperature.view(-1, 1), dim=-1)
        drawn = top_k_top_p_min_p_sampling_from_probs_torch(probs, rows.top_k, rows.top_p, None, False, None, None)
        stand_in.verify_tree_greedy_cpu(*_outputs(candidates), candidates, *links, drawn.view(batch_size, width))

    return run


def tree_layout_cpu(inputs: dict[str, Any]) -> Callable[[], Any] | None:
    """`reconstruct_indices_from_tree_mask` as it runs without a GPU, for masks already made on the host."""
    return _reconstruct(inputs, stand_in.reconstruct_indices_from_tree_mask)


def tree_layout_gpu(inputs: dict[str, Any]) -> Callable[[], Any] | None:
    """`reconstruct_indices_from_tree_mask`, then the mask over the contexts as NGRAM makes it: a request at a time, all
    bools (`srt/speculative/ngram_worker.py`), and FlashInfer's packing of it, which every `plan` does."""
    from sglang.kernels.ops.speculative.tree import reconstruct_indices_from_tree_mask

    reconstruct = _reconstruct(inputs, reconstruct_indices_from_tree_mask)
    if reconstruct is None or inputs["mask"] != "packed":
        return reconstruct
    from flashinfer import segment_packbits

    widen = _widened_mask(inputs)

    def run() -> None:
        reconstruct()
        whole, indptr = widen()
        segment_packbits(whole, indptr, bitorder="little")

    return run


def packed_mask_cpu(inputs: dict[str, Any]) -> Callable[[], Any] | None:
    """NGRAM's mask over the contexts alone, as it is made a request at a time, before any packing."""
    return _widened_mask(inputs) if inputs["mask"] == "packed" else None


def sampling_cpu(inputs: dict[str, Any]) -> Callable[[], Any] | None:
    """SGLang's torch sampler (`srt/layers/sampler.py`), which draws as well."""
    from sglang.srt.layers.sampler import top_k_top_p_min_p_sampling_from_probs_torch

    logits, sampling = inputs["logits"], inputs["sampling"]
    if not sampling.is_filtered:
        return None
    rows = logits.shape[0]
    top_k = sampling.top_k if sampling.top_k is not None else torch.full((rows,), 1 << 30, device=logits.device)
    top_p = sampling.top_p if sampling.top_p is not None else torch.ones(rows, device=logits.device)

    def run() -> None:
        probs = torch.softmax(logits / sampling.temperature, dim=-1)
        top_k_top_p_min_p_sampling_from_probs_torch(probs, top_k, top_p, None, False, None, None)

    return run


ON_CPU: dict[str, dict[str, Peer]] = {
    "verify_greedy": {"sgl_kernel stand-in": verify_greedy_cpu},
    "verify_sampled_logits": {"SGLang torch sampler, all rows": verify_sampled_logits_cpu},
    "tree_layout": {"sgl_kernel stand-in": tree_layout_cpu, "SGLang NGRAM mask loop": packed_mask_cpu},
    "sampling_weights": {"SGLang torch sampler": sampling_cpu},
}
ON_GPU: dict[str, dict[str, Peer]] = {
    "verify_greedy": {"SGLang verify_tree_greedy": verify_greedy_gpu},
    "verify_sampled": {
        "SGLang target_only": verify_sampled_gpu,
        "FlashInfer chain_speculative_sampling": verify_sampled_chain,
    },
    "tree_layout": {"SGLang reconstruct + NGRAM mask loop + packing": tree_layout_gpu},
    "sampling_weights": {"SGLang torch sampler": sampling_cpu},
}


def _links(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    parents = inputs["parents"]
    if parents is None or inputs.get("num_nodes") is not None:
        return None
    layout = tree_layout(parents, parents.new_zeros(len(parents), dtype=torch.int64), mask="none", chain=False)
    return layout.retrieve_index, layout.retrieve_next_token, layout.retrieve_next_sibling


def _outputs(candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch_size, width = candidates.shape
    device = candidates.device
    return (
        torch.zeros(batch_size * width, dtype=torch.int32, device=device),
        torch.full((batch_size, width), -1, dtype=torch.int32, device=device),
        torch.empty(batch_size, dtype=torch.int32, device=device),
    )


def _verify_greedy(inputs: dict[str, Any], walk: Callable[..., None]) -> Callable[[], Any] | None:
    links = _links(inputs)
    if links is None:
        return None
    return lambda: walk(*_outputs(inputs["candidates"]), inputs["candidates"], *links, inputs["target"])


def _reconstruct(inputs: dict[str, Any], reconstruct: Callable[..., None]) -> Callable[[], Any] | None:
    parents, context_lens = inputs["parents"], inputs["context_lens"]
    batch_size, width = parents.shape
    mask = tree_layout(parents, context_lens, mask="tree", chain=False).mask
    assert mask is not None

    def run() -> None:
        positions = torch.empty(batch_size * width, dtype=torch.int64, device=parents.device)
        links = torch.full((3, batch_size, width), -1, dtype=torch.int64, device=parents.device)
        reconstruct(mask.view(-1), context_lens, positions, *links, batch_size, width)

    return run


def _widened_mask(inputs: dict[str, Any]) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    parents, context_lens = inputs["parents"], inputs["context_lens"]
    width = parents.shape[1]
    mask = tree_layout(parents, context_lens, mask="tree", chain=False).mask
    assert mask is not None
    lens = context_lens.tolist()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        pieces = []
        for b, length in enumerate(lens):
            ones = torch.ones(width, length, dtype=torch.bool, device=mask.device)
            pieces.append(torch.cat((ones, mask[b]), dim=1).flatten())
        sizes = width * (context_lens + width)
        return torch.cat(pieces), torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()

    return run
