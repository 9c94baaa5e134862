"""float32 linear layers whose rows do not depend on how many rows there are.

MKL, which torch uses for float32, rounds differently for one, two and three rows than for more, so a token decoded
alone and the same token in a batch of four or in a verify step get different bits. oneDNN's product does so for a
single row only. Taking oneDNN, and two rows where there is one, makes greedy decoding independent of batching and
speculation. In bfloat16 torch already uses oneDNN, and every row count gave the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

_MIN_ROWS_ONEDNN = 2
_MIN_ROWS_MKL = 4


def row_invariant_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` for float32 on the CPU, with that property. x [..., in], weight [out, in]."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] == 0:
        return linear(x, weight, bias)
    use_onednn = onednn_available()
    missing = (_MIN_ROWS_ONEDNN if use_onednn else _MIN_ROWS_MKL) - rows.shape[0]
    padded = torch.cat([rows, rows[-1:].expand(missing, -1)]) if missing > 0 else rows
    if use_onednn:
        out = torch.ops.mkldnn._linear_pointwise(padded, weight, bias, "none", [], "")
    else:
        out = linear(padded, weight, bias)
    return out[: rows.shape[0]].view(*x.shape[:-1], weight.shape[0])


def onednn_available() -> bool:
    """Whether this torch build has oneDNN's float32 linear."""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def around_linear_apply(
    original: Callable[..., torch.Tensor],
    method: Any,
    layer: Any,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """AROUND hook on `UnquantizedLinearMethod.apply`."""
    weight = layer.weight
    if _is_ours(x, weight):
        return row_invariant_linear(x, weight, bias)
    return original(method, layer, x, bias)


def around_lm_head(
    original: Callable[..., torch.Tensor],
    processor: Any,
    hidden_states: torch.Tensor,
    lm_head: Any,
    embedding_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """AROUND hook on `LogitsProcessor._compute_lm_head`: only the plain weight, no LoRA and no quantised head."""
    weight: Any = getattr(lm_head, "weight", None)
    is_plain = type(getattr(lm_head, "quant_method", None)).__name__ in (
        "UnquantizedEmbeddingMethod",
        "UnquantizedLinearMethod",
        "NoneType",
    )
    if is_plain and not hasattr(lm_head, "apply_lora") and _is_ours(hidden_states, weight):
        return row_invariant_linear(hidden_states, weight)
    return original(processor, hidden_states, lm_head, embedding_bias)


def _is_ours(x: torch.Tensor, weight: Any) -> bool:
    return (
        isinstance(weight, torch.Tensor)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and weight.layout == torch.strided
        and weight.dim() == 2
    )
