"""From the target's logits over a step's rows to the tokens each request gains: exactly those of plain decoding.

Every new token is what the target itself would emit behind the tokens before it. Greedy requests take the argmax.
Sampled ones draw from the target's distribution at each node they reach, and go on where a drafted token was drawn
(`agentinfer.kernels.verify_sampled`); with SGLang's per-request seeds the draws are its own sampler's. What depends on
the tokens of the same step (penalties, requests' own logit processors) is only ever applied to requests of one row.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.sampler import apply_custom_logit_processor
from sglang.srt.sampling.penaltylib.repetition_penalty import apply_scaling_penalties
from sglang.srt.speculative.spec_utils import GrammarTree, build_grammar_vocab_mask
from sglang.srt.utils.async_probe import sanitize_nan_logits

from agentinfer.kernels import Sampling, Verified, sampling_weights, verify_greedy, verify_sampled_logits
from agentinfer.kernels.verify_sampled.cpu import verify_sampled_cpu
from agentinfer.runtime.speculation.layout import StepLayout


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a step gained. `lens` int32 [n]: new tokens a request, at least 1. `rows` int32 [n, width]: rows of the
    forward pass along the accepted path, then -1. `predict` int32 [rows]: the new token behind each of those rows."""

    lens: torch.Tensor
    rows: torch.Tensor
    predict: torch.Tensor


def prepare_logits(logits: torch.Tensor, layout: StepLayout, info: Any, grammar_mask: Any) -> None:
    """Applies to `logits` [rows, vocab] in place, in SGLang's order, what plain decoding applies to a request's row.

    `info` is the batch's SamplingBatchInfo; `grammar_mask` that of `grammar_mask_of`, or None.
    """
    roots = layout.first_row.to(logits.device)
    if info.acc_additive_penalties is not None or info.acc_scaling_penalties is not None:
        # Requests with more rows than one have no penalties: adding 0 and scaling by 1 leave their bits alone.
        at_roots = logits[roots]
        if info.acc_additive_penalties is not None:
            at_roots.add_(info.acc_additive_penalties)
        if info.acc_scaling_penalties is not None:
            apply_scaling_penalties(at_roots, info.acc_scaling_penalties)
        logits[roots] = at_roots
    if grammar_mask is not None:
        grammar_mask.apply(logits)
    if info.logit_bias is not None:
        logits.add_(info.logit_bias[layout.request.to(logits.device)])
    if info.has_custom_logit_processor:
        at_roots = logits[roots]
        apply_custom_logit_processor(at_roots, info)
        logits[roots] = at_roots
    sanitize_nan_logits(logits, "AGENT_SAM: logits of a verify step")


def grammar_mask_of(requests: list[Any], layout: StepLayout, info: Any, device: torch.device) -> Any:
    """Which tokens the requests' grammars allow at each row, or None where no request has one.

    Rows that a grammar cannot reach stay unconstrained; nothing is accepted there.
    """
    tree = GrammarTree.from_host(layout.tree.retrieve_next_token, layout.tree.retrieve_next_sibling, layout.tokens)
    mask = build_grammar_vocab_mask(
        reqs=requests, tree=tree, sampling_info=info, device=torch.device("cpu"), barrier=None
    )
    if mask is None:
        return None
    rows = mask.vocab_mask[layout.request * layout.width + layout.node]
    return mask._replace(vocab_mask=rows.to(device, non_blocking=True))


def accept(
    logits: torch.Tensor, layout: StepLayout, info: Any, sampler: Any, positions: torch.Tensor, is_joint: bool
) -> Accepted:
    """Walks the drafts along what the target emits. `logits` [rows, vocab] are prepared, and left as they are.

    `info`: the batch's SamplingBatchInfo; `positions` of the rows; `is_joint`: see `Sampling.joint`. On a GPU nothing
    waits for the device.
    """
    device = logits.device
    tokens, parents = layout.tokens.to(device), layout.parents.to(device)
    num_nodes = layout.num_nodes.to(device)
    if info.is_all_greedy:
        verified = verify_greedy(tokens, _spread(logits.argmax(-1), layout), parents, num_nodes=num_nodes)
    elif info.sampling_seed is not None:
        drawn = _draw_seeded(logits, layout, info, sampler, positions)
        verified = verify_greedy(tokens, _spread(drawn, layout), parents, num_nodes=num_nodes)
    else:
        sampling = Sampling(
            temperature=info.temperatures,
            top_k=info.top_ks if info.need_top_k_sampling or info.is_any_greedy else None,
            top_p=info.top_ps if info.need_top_p_sampling else None,
            min_p=info.min_ps if info.need_min_p_sampling else None,
            joint=is_joint,
        )
        coins = torch.rand(layout.tokens.shape, device=device)
        if device.type == "cpu":
            first_row = layout.first_row

            def weights_of(requests: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
                return sampling_weights(logits[first_row[requests] + nodes], sampling.of(requests))

            verified = verify_sampled_cpu(tokens, weights_of, coins, parents, num_nodes)
        else:
            verified = verify_sampled_logits(tokens, logits, sampling, coins, parents, num_nodes=num_nodes)
    return _as_rows(verified, layout)


def _spread(of_rows: torch.Tensor, layout: StepLayout) -> torch.Tensor:
    """Rows' values at their nodes [n, width]; padding gets 0."""
    if of_rows.numel() == layout.tokens.numel():
        return of_rows.view(layout.tokens.shape)
    out = of_rows.new_zeros(layout.tokens.numel())
    out[(layout.request * layout.width + layout.node).to(of_rows.device)] = of_rows
    return out.view(layout.tokens.shape)


def _as_rows(verified: Verified, layout: StepLayout) -> Accepted:
    if layout.request.numel() == layout.tokens.numel():
        return Accepted(verified.accept_lens, verified.accept_index, verified.predict)
    return Accepted(verified.accept_lens, layout.to_rows(verified.accept_index), layout.of_rows(verified.predict))


def _draw_seeded(
    logits: torch.Tensor, layout: StepLayout, info: Any, sampler: Any, positions: torch.Tensor
) -> torch.Tensor:
    """SGLang's own draw at every row: it depends on the request's seed and the row's position alone."""
    request = layout.request.to(logits.device)
    of_rows = dataclasses.replace(
        info,
        temperatures=info.temperatures[request],
        top_ps=info.top_ps[request],
        top_ks=info.top_ks[request],
        min_ps=info.min_ps[request],
        sampling_seed=info.sampling_seed[request],
        # All of these were applied before.
        grammars=None,
        grammar_mask=None,
        logit_bias=None,
        acc_additive_penalties=None,
        acc_scaling_penalties=None,
        has_custom_logit_processor=False,
        custom_logit_processor=None,
        custom_params=None,
    )
    # The sampler turns its logits into probabilities in place.
    output = LogitsProcessorOutput(next_token_logits=logits.clone())
    drawn: torch.Tensor = sampler(output, of_rows, False, [], [], positions)
    return drawn
