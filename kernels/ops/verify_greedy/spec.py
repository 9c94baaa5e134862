"""Spec of `verify_greedy`."""

from __future__ import annotations

from typing import Any

import torch

from agentinfer.kernels.example_trees import distinct_siblings, random_parents
from agentinfer.kernels.spec import Case, OpSpec, Outputs, equal
from agentinfer.kernels.verify_greedy import verify_greedy


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """Drafts of which about half of the nodes have a child that the target chose.

    Options: `shape` of the trees; `implicit` leaves the parents of chains out; `cut` gives `num_nodes`; `agree` is the
    share of nodes that agree; `duplicates` lets siblings share a token; `vocab`; `dtype` of tokens.
    """
    batch_size, width = case.axes["bs"], case.axes["width"]
    options = {"shape": "tree", "agree": 0.5, "vocab": 1000, **case.options}
    parents = random_parents(options["shape"], batch_size, width, generator)
    if options.get("duplicates"):
        candidates = torch.randint(options["vocab"], (batch_size, width), generator=generator)
    else:
        candidates = distinct_siblings(parents, options["vocab"], generator)
    target = torch.randint(options["vocab"], (batch_size, width), generator=generator)
    for b in range(batch_size):
        for node in range(1, width):
            if parents[b, node] >= 0 and float(torch.rand(1, generator=generator)) < options["agree"]:
                target[b, parents[b, node]] = candidates[b, node]
    num_nodes = torch.randint(1, width + 1, (batch_size,), generator=generator) if options.get("cut") else None
    dtype = options.get("dtype", torch.int64)
    return {
        "candidates": candidates.to(dtype),
        "target": target.to(dtype),
        "parents": None if options.get("implicit") else parents,
        "num_nodes": num_nodes,
    }


def call(inputs: dict[str, Any], implementation: str | None) -> Outputs:
    """Runs the op."""
    verified = verify_greedy(**inputs, implementation=implementation)
    return {
        "predict": verified.predict,
        "accept_lens": verified.accept_lens,
        "accept_index": verified.accept_index,
    }


SPEC = OpSpec(
    name="verify_greedy",
    axes={"bs": "requests", "width": "nodes of the widest draft, root included"},
    make_inputs=make_inputs,
    call=call,
    compare=equal,
    tolerance="none: only integers are compared",
    cases=(
        Case("one node", {"bs": 3, "width": 1}, forces="nothing drafted"),
        Case("whole chain", {"bs": 2, "width": 8}, {"shape": "chain", "agree": 1.0}, "every draft accepted"),
        Case("implicit chain", {"bs": 4, "width": 6}, {"shape": "chain", "implicit": True, "agree": 0.8}, "no parents"),
        Case(
            "cut chain",
            {"bs": 7, "width": 6},
            {"shape": "chain", "implicit": True, "agree": 1.0, "cut": True},
            "num_nodes ends what would be accepted",
        ),
        Case("ragged chains", {"bs": 5, "width": 9}, {"shape": "ragged_chain", "agree": 0.8}, "-1 as padding"),
        Case("trees", {"bs": 6, "width": 16}, {"agree": 0.7}, "a path that skips nodes"),
        Case("cut trees", {"bs": 6, "width": 8}, {"agree": 0.9, "cut": True}, "parents and num_nodes both"),
        Case("star", {"bs": 3, "width": 5}, {"shape": "star", "agree": 1.0}, "siblings only"),
        Case("shared tokens", {"bs": 6, "width": 12}, {"duplicates": True, "vocab": 2}, "the first of equal siblings"),
        Case("int32", {"bs": 2, "width": 7}, {"dtype": torch.int32}, "tokens of 32 bits"),
        Case("wide", {"bs": 1, "width": 64}, {"shape": "chain", "agree": 1.0}, "a draft of 64"),
        Case("many", {"bs": 33, "width": 4}, {"agree": 0.9}, "more requests than a warp"),
    ),
    measured=(
        Case("chains", {"bs": 4, "width": 8}, {"shape": "ragged_chain", "agree": 0.7}),
        Case("trees", {"bs": 1, "width": 8}, {"agree": 0.7}),
        Case("trees", {"bs": 4, "width": 8}, {"agree": 0.7}),
        Case("trees", {"bs": 16, "width": 16}, {"agree": 0.7}),
        Case("trees", {"bs": 64, "width": 16}, {"agree": 0.7}),
    ),
)
