"""Forced replay: the engine emits a recorded reply, token for token, while every forward pass is computed for real.

A row of logits predicts the token that follows its position, so the token to force is known from the position alone: no
matter whether the row comes from prefill, from a decode step or from a node of a speculative draft, at any depth. That
keeps acceptance under speculation exactly what it would be for a model that greedily produces the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from agentinfer.runtime.seams import Seam

# The key under which a request's tokens travel in SGLang's sampling_params.custom_params.
FORCED_KEY = "agentinfer_forced"

# Each of these forbids tokens by -inf after our hook ran: together with forcing, a row could be left with no token.
_CONFLICTING_PARAMS = ("json_schema", "regex", "ebnf", "structural_tag", "logit_bias", "min_new_tokens")

_PLAN = "_agentinfer_forced_plan"
_TOKENS = "_agentinfer_forced_tokens"

SEAMS = (
    Seam(
        target="sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
        parameters=(
            "cls",
            "batch",
            "model_runner",
            "capture_hidden_mode",
            "return_hidden_states_before_norm",
        ),
        caller="sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_generation",
        reason="the only place where the requests of a batch and the tensors of its forward pass meet",
        feature="forced_replay",
        door="hook",
        processes=("scheduler",),
    ),
    Seam(
        target="sglang.srt.model_executor.model_runner.ModelRunner.forward",
        parameters=(
            "self",
            "forward_batch",
            "skip_attn_backend_init",
            "pp_proxy_tensors",
            "reinit_attn_backend",
            "split_forward_count",
        ),
        caller="sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_generation",
        reason="its logits are read by the sampler and by every speculative verifier",
        feature="forced_replay",
        door="hook",
        processes=("scheduler",),
    ),
)


@dataclass(frozen=True, slots=True)
class ForcedPlan:
    """What to force in one forward pass; both tensors have one entry a row of logits, on the logits' device.

    `token` (int64) is meaningful only where `is_forced` (bool) holds.
    """

    token: torch.Tensor
    is_forced: torch.Tensor


def plan_rows(
    forced: list[torch.Tensor | None],
    prompt_lens: list[int],
    positions: torch.Tensor,
    rows_per_request: int | Sequence[int],
) -> ForcedPlan | None:
    """The plan for rows at `positions` (int64 ``[rows]``, request-major; one number a request, or one for all).

    `forced[i]` holds request i's reply (int64, on the device of `positions`) or None, `prompt_lens[i]` its prompt's
    length in tokens. A row at position p predicts reply token ``p + 1 - prompt_len``; rows before the prompt's end and
    past the reply's are left alone. Returns None when no request of the batch is forced.
    """
    present = [tokens for tokens in forced if tokens is not None]
    if not present:
        return None
    device = positions.device
    flat = torch.cat(present)
    starts, lengths, start = [], [], 0
    for tokens in forced:
        length = 0 if tokens is None else tokens.numel()
        starts.append(start)
        lengths.append(length)
        start += length

    if isinstance(rows_per_request, int):
        repeats: int | torch.Tensor = rows_per_request
    else:
        repeats = torch.tensor(rows_per_request, device=device)

    def rows(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=device).repeat_interleave(repeats, output_size=positions.numel())

    index = positions + 1 - rows(prompt_lens)
    is_forced = (index >= 0) & (index < rows(lengths))
    token = flat[(rows(starts) + index).clamp(0, flat.numel() - 1)]
    return ForcedPlan(token=token, is_forced=is_forced)


def force_logits(logits: torch.Tensor, plan: ForcedPlan) -> None:
    """Leave the planned token as the only possible one in each forced row of `logits` ``[rows, vocab]``, in place.

    The rows become -inf but for a 0, so argmax, sampling at any temperature and log-probabilities (0.0) agree. Makes no
    host synchronisation, so it may run under overlap scheduling.
    """
    column = plan.token.unsqueeze(1)
    kept = torch.where(plan.is_forced, 0.0, logits.gather(1, column).squeeze(1))
    logits.masked_fill_(plan.is_forced.unsqueeze(1), float("-inf"))
    logits.scatter_(1, column, kept.to(logits.dtype).unsqueeze(1))


def conflicting_param(sampling_params: Mapping[str, Any]) -> str | None:
    """The first sampling parameter that cannot be combined with a forced reply, or None."""
    return next((name for name in _CONFLICTING_PARAMS if sampling_params.get(name)), None)


def install(config: Any, hook: Callable[..., None]) -> None:
    """Register the hooks of this module through `hook` (see `seams.hook`)."""
    hook("sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new", _attach_plan, "after")
    hook("sglang.srt.model_executor.model_runner.ModelRunner.forward", _apply_plan, "after")


def _attach_plan(forward_batch: Any, cls: type, batch: Any, *args: Any, **kwargs: Any) -> None:
    forced = [_forced_tokens(req, forward_batch.seq_lens.device) for req in batch.reqs]
    if all(tokens is None for tokens in forced):
        return
    prompt_lens = [len(req.origin_input_ids) for req in batch.reqs]
    if forward_batch.forward_mode.is_target_verify():
        positions = forward_batch.spec_info.positions
        # AGENT_SAM's rows may be ragged.
        rows_per_request = getattr(forward_batch.spec_info, "row_counts", positions.numel() // len(forced))
    else:
        positions, rows_per_request = forward_batch.seq_lens - 1, 1
    setattr(forward_batch, _PLAN, plan_rows(forced, prompt_lens, positions.long(), rows_per_request))


def _apply_plan(output: Any, runner: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> None:
    plan: ForcedPlan | None = getattr(forward_batch, _PLAN, None)
    if plan is None or runner.is_draft_worker:
        return
    logits = getattr(output.logits_output, "next_token_logits", None)
    if logits is None:
        return
    if logits.shape[0] != plan.token.shape[0]:
        raise RuntimeError(
            f"forced replay: {logits.shape[0]} rows of logits for {plan.token.shape[0]} planned rows in mode "
            f"{forward_batch.forward_mode}; this kind of batch is not supported, replay without --forced"
        )
    force_logits(logits, plan)


def _forced_tokens(req: Any, device: torch.device) -> torch.Tensor | None:
    # Kept on the request: moved to the device once, freed with it.
    tokens: torch.Tensor | None = getattr(req, _TOKENS, None)
    if tokens is None:
        params = req.sampling_params.custom_params
        ids = params.get(FORCED_KEY) if isinstance(params, dict) else None
        if not ids:
            return None
        tokens = torch.tensor(ids, dtype=torch.int64, device=device)
        setattr(req, _TOKENS, tokens)
    return tokens
