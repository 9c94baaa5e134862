"""Spec of `sampling_weights`."""

from __future__ import annotations

from typing import Any

import torch

from agentinfer.kernels.sampling_weights import Sampling, sampling_weights
from agentinfer.kernels.spec import Case, OpSpec, Outputs

OFF = 1 << 30  # what SGLang calls TOP_K_ALL


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """Rows of normal logits. Options: `top_k`, `top_p`, `min_p` each a list to draw the rows' values from; `joint`;
    `spread` of the logits."""
    rows, vocab_size = case.axes["rows"], case.axes["vocab"]

    def pick(name: str, dtype: torch.dtype) -> torch.Tensor | None:
        values = case.options.get(name)
        if values is None:
            return None
        return torch.tensor(values, dtype=dtype)[torch.randint(len(values), (rows,), generator=generator)]

    return {
        "logits": torch.randn(rows, vocab_size, generator=generator) * case.options.get("spread", 3.0),
        "sampling": Sampling(
            torch.rand(rows, 1, generator=generator) + 0.5,
            pick("top_k", torch.int32),
            pick("top_p", torch.float32),
            pick("min_p", torch.float32),
            case.options.get("joint", True),
        ),
    }


def call(inputs: dict[str, Any], implementation: str | None) -> Outputs:
    """Runs the op and normalises."""
    weights = sampling_weights(**inputs, implementation=implementation)
    return {"probabilities": weights / weights.sum(-1, keepdim=True)}


def compare(actual: Outputs, expected: Outputs) -> None:
    """The same tokens are kept, with the same probabilities."""
    got, want = actual["probabilities"], expected["probabilities"]
    differ = int(((got > 0) != (want > 0)).sum())
    assert differ == 0, f"{differ} tokens kept by one only"
    worst = float(((got - want).abs() / want.clamp(min=1e-12)).max())
    assert worst < 1e-4, f"probabilities differ by up to {worst:.1e} of themselves"


SPEC = OpSpec(
    name="sampling_weights",
    axes={"rows": "nodes of all requests", "vocab": "tokens of the target's vocabulary"},
    make_inputs=make_inputs,
    call=call,
    compare=compare,
    tolerance="1e-4 of each probability: float32 sums over a vocabulary in another order; which tokens stay is exact",
    cases=(
        Case("temperature only", {"rows": 3, "vocab": 50}, forces="no filter"),
        Case("top-k", {"rows": 6, "vocab": 1000}, {"top_k": [1, 2, 40, 256]}, "greedy rows among others"),
        Case("top-k off for some", {"rows": 6, "vocab": 700}, {"top_k": [5, OFF]}, "the head is not enough: sorted"),
        Case("small vocabulary", {"rows": 4, "vocab": 20}, {"top_k": [5, OFF]}, "the head is the vocabulary"),
        Case("top-p", {"rows": 6, "vocab": 2000}, {"top_p": [0.1, 0.5, 0.9], "spread": 6.0}, "ends within the head"),
        Case("top-p, flat", {"rows": 4, "vocab": 2000}, {"top_p": [0.9, 1.0], "spread": 0.5}, "ends beyond the head"),
        Case("top-p, flat and large", {"rows": 6, "vocab": 5000}, {"top_p": [0.1, 0.9], "spread": 0.5}, "rows sorted"),
        Case("min-p", {"rows": 5, "vocab": 500}, {"min_p": [0.0, 0.05, 0.3]}, "no order needed"),
        Case(
            "all, joint",
            {"rows": 8, "vocab": 600},
            {"top_k": [1, 3, 20, OFF], "top_p": [0.3, 0.8], "min_p": [0.0, 0.1], "spread": 5.0},
            "every filter at once",
        ),
        Case(
            "all, one after the other",
            {"rows": 8, "vocab": 600},
            {"top_k": [1, 3, 20, OFF], "top_p": [0.3, 0.8], "min_p": [0.0, 0.1], "spread": 5.0, "joint": False},
            "top-p judges what top-k left",
        ),
    ),
    measured=(
        Case("temperature only", {"rows": 4, "vocab": 49152}),
        Case("top-k 40", {"rows": 4, "vocab": 49152}, {"top_k": [40]}),
        Case("top-p 0.9", {"rows": 4, "vocab": 49152}, {"top_p": [0.9], "spread": 6.0}),
        Case("top-p 0.9", {"rows": 32, "vocab": 49152}, {"top_p": [0.9], "spread": 6.0}),
        Case("top-k 40, top-p 0.9", {"rows": 32, "vocab": 151936}, {"top_k": [40], "top_p": [0.9], "spread": 6.0}),
    ),
    on_gpu=("reference", "flashinfer"),
)
