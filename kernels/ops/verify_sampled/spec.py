"""Specs of `verify_sampled` and `verify_sampled_logits`."""

from __future__ import annotations

from typing import Any

import torch

from agentinfer.kernels.example_trees import distinct_siblings, random_parents
from agentinfer.kernels.spec import Case, OpSpec, Outputs, equal
from agentinfer.kernels.tree import Verified
from agentinfer.kernels.verify_sampled import Sampling, verify_sampled, verify_sampled_logits


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """Weights with zeros among them, and coins that each fall into the middle of some token's share.

    Three in four coins choose a child where the node has one. Options: `shape`, `implicit`, `cut` as in
    `verify_greedy`; `kept` is the share of tokens with weight.
    """
    batch_size, width, vocab_size = case.axes["bs"], case.axes["width"], case.axes["vocab"]
    options = {"shape": "tree", "kept": 0.5, **case.options}
    parents = random_parents(options["shape"], batch_size, width, generator)
    candidates = distinct_siblings(parents, vocab_size, generator)
    weights = torch.rand(batch_size, width, vocab_size, generator=generator) + 0.5
    weights *= torch.rand(weights.shape, generator=generator) < options["kept"]
    weights[..., 0] += 0.5
    coins = torch.rand(batch_size, width, generator=generator)
    for b in range(batch_size):
        node, depth = 0, 0
        while True:
            children = torch.nonzero(parents[b] == node)[:, 0]
            child = int(children[torch.randint(len(children), (1,), generator=generator)]) if len(children) else None
            goes_on = child is not None and float(torch.rand(1, generator=generator)) < 0.75
            token = int(candidates[b, child]) if goes_on else int(weights[b, node].argmax())
            weights[b, node, token] += float(weights[b, node, token] == 0)
            shares = weights[b, node].double()
            coins[b, depth] = float((shares[:token].sum() + shares[token] / 2) / shares.sum())
            matching = [int(c) for c in children if int(candidates[b, c]) == token]
            if not matching:
                break
            node, depth = matching[0], depth + 1
    num_nodes = torch.randint(1, width + 1, (batch_size,), generator=generator) if options.get("cut") else None
    return {
        "candidates": candidates,
        "weights": weights,
        "coins": coins,
        "parents": None if options.get("implicit") else parents,
        "num_nodes": num_nodes,
    }


def call(inputs: dict[str, Any], implementation: str | None) -> Outputs:
    """Runs the op."""
    return _named(verify_sampled(**inputs, implementation=implementation))


def make_logits_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """Logits under which drafted tokens are likely, top-p and top-k for all requests but greedy ones among them."""
    batch_size, width, vocab_size = case.axes["bs"], case.axes["width"], case.axes["vocab"]
    parents = random_parents("tree", batch_size, width, generator)
    candidates = distinct_siblings(parents, vocab_size, generator)
    logits = torch.randn(batch_size, width, vocab_size, generator=generator) * 2
    for b in range(batch_size):
        for node in range(1, width):
            logits[b, int(parents[b, node].clamp(min=0)), int(candidates[b, node])] += 12
    top_k = torch.tensor([1, 40])[torch.randint(2, (batch_size,), generator=generator)]
    return {
        "candidates": candidates,
        "logits": logits.view(batch_size * width, vocab_size),
        "sampling": Sampling(torch.full((batch_size,), 0.7), top_k, torch.full((batch_size,), 0.9)),
        "coins": torch.rand(batch_size, width, generator=generator),
        "parents": parents,
    }


def call_logits(inputs: dict[str, Any], implementation: str | None) -> Outputs:
    """Runs `verify_sampled_logits`."""
    return _named(verify_sampled_logits(**inputs, implementation=implementation))


def _named(verified: Verified) -> Outputs:
    return {
        "predict": verified.predict,
        "accept_lens": verified.accept_lens,
        "accept_index": verified.accept_index,
    }


SPEC = OpSpec(
    name="verify_sampled",
    axes={
        "bs": "requests",
        "width": "nodes of the widest draft, root included",
        "vocab": "tokens of the target's vocabulary",
    },
    make_inputs=make_inputs,
    call=call,
    compare=equal,
    tolerance="none: a coin in the middle of a token's share is half a share away from where rounding could matter",
    cases=(
        Case("one node", {"bs": 3, "width": 1, "vocab": 17}, forces="nothing drafted"),
        Case("chains", {"bs": 4, "width": 6, "vocab": 64}, {"shape": "chain"}, "a vocabulary of one full block"),
        Case("implicit chain", {"bs": 4, "width": 6, "vocab": 100}, {"shape": "chain", "implicit": True}, "no parents"),
        Case(
            "cut chain", {"bs": 5, "width": 6, "vocab": 50}, {"shape": "chain", "implicit": True, "cut": True}, "ends"
        ),
        Case("ragged chains", {"bs": 5, "width": 5, "vocab": 33}, {"shape": "ragged_chain"}, "-1 as padding"),
        Case("trees", {"bs": 6, "width": 12, "vocab": 40}, forces="a path that skips nodes"),
        Case("star", {"bs": 3, "width": 5, "vocab": 9}, {"shape": "star"}, "siblings only"),
        Case("few kept", {"bs": 4, "width": 4, "vocab": 300}, {"kept": 0.01}, "nearly all weights zero"),
        Case("large vocabulary", {"bs": 2, "width": 3, "vocab": 9000}, forces="several blocks, the last not full"),
    ),
    measured=(
        Case("chains", {"bs": 4, "width": 8, "vocab": 49152}, {"shape": "ragged_chain"}),
        Case("trees", {"bs": 1, "width": 8, "vocab": 49152}),
        Case("trees", {"bs": 4, "width": 8, "vocab": 49152}),
        Case("trees", {"bs": 16, "width": 16, "vocab": 49152}),
        Case("trees", {"bs": 16, "width": 8, "vocab": 151936}),
    ),
)

LOGITS_SPEC = OpSpec(
    name="verify_sampled_logits",
    axes=SPEC.axes,
    make_inputs=make_logits_inputs,
    call=call_logits,
    compare=equal,
    tolerance="none: a fixed seed whose coins are not within rounding of the edge of a token's share",
    cases=(
        Case("one node", {"bs": 3, "width": 1, "vocab": 40}, forces="nothing drafted"),
        Case("trees", {"bs": 5, "width": 9, "vocab": 500}, forces="greedy and sampled requests in one batch"),
    ),
    measured=(
        Case("trees", {"bs": 1, "width": 8, "vocab": 49152}),
        Case("trees", {"bs": 4, "width": 8, "vocab": 49152}),
        Case("trees", {"bs": 16, "width": 8, "vocab": 151936}),
    ),
)
