"""Spec of `tree_layout`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from agentinfer.kernels.example_trees import random_parents
from agentinfer.kernels.spec import Case, OpSpec, Outputs, equal
from agentinfer.kernels.tree_layout import tree_layout


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """Trees behind contexts of up to `context` tokens. Options: `shape`; `mask` and `chain` of the op; `dtype` of
    parents."""
    batch_size, width, context = case.axes["bs"], case.axes["width"], case.axes["context"]
    options = {"shape": "tree", "mask": "tree", "chain": False, **case.options}
    context_lens = torch.randint(max(1, context // 2), context + 1, (batch_size,), generator=generator)
    return {
        "parents": random_parents(options["shape"], batch_size, width, generator).to(options.get("dtype", torch.int32)),
        "context_lens": context_lens,
        "mask": options["mask"],
        "chain": options["chain"],
        "context_lens_sum": int(context_lens.sum()) if options.get("sum_known") else None,
    }


def call(inputs: dict[str, Any], implementation: str | None) -> Outputs:
    """Runs the op; what lies behind the last request's packed mask is left out."""
    layout = tree_layout(**inputs, implementation=implementation)
    outputs = {entry.name: getattr(layout, entry.name) for entry in fields(layout)}
    if layout.packed_indptr is not None and layout.packed_mask is not None:
        outputs["packed_mask"] = layout.packed_mask[: int(layout.packed_indptr[-1])]
    outputs["is_chain"] = torch.tensor(layout.is_chain)
    return {name: value for name, value in outputs.items() if value is not None}


SPEC = OpSpec(
    name="tree_layout",
    axes={
        "bs": "requests",
        "width": "nodes of the widest draft, root included",
        "context": "tokens in front of the longest request's root",
    },
    make_inputs=make_inputs,
    call=call,
    compare=equal,
    tolerance="none: only integers and bits are compared",
    cases=(
        Case("one node", {"bs": 2, "width": 1, "context": 9}, {"mask": "packed"}, "a mask of one row"),
        Case("found chain", {"bs": 3, "width": 5, "context": 9}, {"shape": "chain", "chain": None}, "no mask wanted"),
        Case("chain with mask", {"bs": 3, "width": 5, "context": 9}, {"shape": "ragged_chain"}, "chain=False"),
        Case("trees", {"bs": 5, "width": 12, "context": 30}, {}, "several children, padding"),
        Case("star", {"bs": 2, "width": 6, "context": 30}, {"shape": "star"}, "long sibling lists"),
        Case("links only", {"bs": 4, "width": 8, "context": 30}, {"mask": "none"}, "no mask"),
        Case("int64", {"bs": 2, "width": 4, "context": 30}, {"dtype": torch.int64}, "parents of 64 bits"),
        Case("packed", {"bs": 5, "width": 7, "context": 20}, {"mask": "packed"}, "rows that end within a byte"),
        Case("packed, sum known", {"bs": 3, "width": 8, "context": 70}, {"mask": "packed", "sum_known": True}, "bound"),
        Case("packed, long", {"bs": 2, "width": 5, "context": 900}, {"mask": "packed"}, "several blocks of bytes"),
        Case("packed, wide", {"bs": 1, "width": 40, "context": 3}, {"mask": "packed"}, "more tree than context"),
    ),
    measured=(
        Case("chains", {"bs": 4, "width": 8, "context": 4000}, {"shape": "ragged_chain", "chain": None}),
        Case("trees", {"bs": 1, "width": 8, "context": 4000}, {"chain": None}),
        Case("trees", {"bs": 4, "width": 8, "context": 4000}, {"chain": None}),
        Case("trees", {"bs": 16, "width": 16, "context": 4000}, {"chain": None}),
        Case("packed", {"bs": 4, "width": 8, "context": 30000}, {"mask": "packed", "sum_known": True}),
        Case("packed", {"bs": 16, "width": 16, "context": 30000}, {"mask": "packed", "sum_known": True}),
    ),
)
