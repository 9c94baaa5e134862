"""AGENT_SAM's worker: one drafting call and one forward pass of the target model a step, for the whole batch.

SGLang's scheduler drives it as it drives NGRAM's worker. On the CPU steps are synchronous, their rows ragged, and how
many are worth verifying is decided step by step. On a GPU the scheduler overlaps: verified tokens reach the drafter
one step before they reach the requests, and every request brings the width that CUDA graphs were captured for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sglang.srt.layers.logprob_processor import compute_spec_logprobs
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import get_device, get_exec, get_parallel, get_schedule, get_spec
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.ngram_info import NgramVerifyInput
from sglang.srt.speculative.spec_utils import (
    commit_mamba_states_after_verify,
    move_accept_tokens_to_target_kvcache,
    prepare_mamba_track_for_verify,
    record_stream_for_v2_verify,
)

from agentinfer.runtime.speculation.acceptance import (
    Accepted,
    accept,
    grammar_mask_of,
    prepare_logits,
)
from agentinfer.runtime.speculation.ending import num_kept
from agentinfer.runtime.speculation.layout import AgentVerifyInput, StepLayout, full_mask, step_layout
from agentinfer.runtime.speculation.parts import make_controller, make_drafter, make_metrics
from agentinfer.runtime.speculation.planning import StepPlan, StepPlanner
from agentinfer.runtime.speculation.registration import settings
from agentinfer.runtime.speculation.requests import RequestBook
from agentinfer.runtime.speculation.statistics import Statistics, StepFigures, StepTimer


class AgentSamWorker(BaseSpecWorker):  # type: ignore[misc]
    """See the module. Lives in the scheduler's process and thread."""

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        super().__init__()
        self._target_worker = target_worker
        self.model_runner = target_worker.model_runner
        self.device = get_device().device
        self.max_width: int = get_spec().speculative_num_draft_tokens
        self._tp = get_parallel().tp_group
        is_drafting = self._tp.rank_in_group == 0
        self.book = RequestBook(make_drafter(settings(), server_args, self.model_runner.model_config, is_drafting))
        self.controller = make_controller(settings(), self.max_width)
        self.statistics = Statistics(make_metrics(server_args))
        self._is_sync = get_schedule().disable_overlap_schedule
        self._is_ragged = self.device == "cpu"
        self._timer = StepTimer(self.controller.observe)
        self._planner = StepPlanner(self.book, self.controller, self.max_width, self._is_ragged, self._captured_width)

    @property
    def draft_worker(self) -> None:
        """There is no draft model."""
        return None

    def alloc_memory_pool(self, **kwargs: Any) -> None:
        """Takes the target's pools, which exist by now."""
        self.req_to_token_pool, self.token_to_kv_pool_allocator = self._target_worker.get_memory_pool()

    def clear_cache_pool(self) -> None:
        """The engine's cache was flushed: open requests are forgotten, what sessions said is not."""
        self.book.forget_all()

    def note_request_finished(self, *, rid: str, natural_stop: bool) -> None:
        """See BaseSpecWorker. Aborted requests come here too."""
        self.book.finish(rid)

    def forward_batch_generation(
        self, batch: Any, on_publish: Any = None, pp_proxy_tensors: Any = None
    ) -> GenerationBatchResult:
        """One step of the scheduler: a prefill as it is, a decode step as a verify step."""
        record_stream_for_v2_verify(batch, None, torch.get_device_module(self.device).current_stream())
        if batch.forward_mode.is_decode():
            return self._verify(batch, on_publish)
        return self._prefill(batch, on_publish, pp_proxy_tensors)

    def _prefill(self, batch: Any, on_publish: Any, pp_proxy_tensors: Any) -> GenerationBatchResult:
        self._timer.interrupt()
        # Before the forward pass: the prompt is indexed while it is computed. Rank 0 drafts for all.
        if self._tp.rank_in_group == 0:
            self.book.enter(batch.reqs)
        result = self._target_worker.forward_batch_generation(batch, pp_proxy_tensors=pp_proxy_tensors)
        num_requests = len(batch.reqs)
        new_tokens = torch.zeros(num_requests, self.max_width, dtype=torch.int32, device=self.device)
        new_tokens[:, 0] = result.next_token_ids
        lens = torch.ones(num_requests, dtype=torch.int32, device=self.device)
        return self._result(batch, result, result.next_token_ids, new_tokens, lens, batch.seq_lens.clone(), on_publish)

    def _verify(self, batch: Any, on_publish: Any) -> GenerationBatchResult:
        requests = batch.reqs
        self._timer.start_step(requests)
        ahead = None if self._is_sync or batch.grammar_needs_sync() else _tokens_ahead(batch.spec_info)
        context_lens = _context_lens(requests, ahead)
        plan = self._agreed(self._planner.plan(requests, ahead, context_lens) if self._tp.rank_in_group == 0 else None)
        layout = step_layout(plan.tokens, plan.parents, plan.num_nodes, context_lens, plan.padded_width)
        self._load(batch, layout, context_lens)

        result = self._target_worker.forward_batch_generation(batch, is_verify=True)
        logits = result.logits_output.next_token_logits
        info = batch.sampling_info
        mask = grammar_mask_of(requests, layout, info, logits.device) if batch.has_grammar else None
        prepare_logits(logits, layout, info, mask)
        sampler = self.model_runner.sampler
        accepted = accept(logits, layout, info, sampler, batch.spec_info.positions, self._is_joint(info))
        if self._tp.world_size > 1:
            for each in (accepted.lens, accepted.rows, accepted.predict):
                self._tp.broadcast(each, src=0)
        if self._is_sync:
            accepted = _cut_at_ends(requests, accepted, layout)
        self._commit(batch, accepted, layout)
        if batch.return_logprob:
            self._add_logprobs(batch, result.logits_output, accepted)
        batch.forward_mode = ForwardMode.DECODE

        new_tokens = self._new_tokens(accepted)
        if self._is_sync:
            self._observe(plan, layout, accepted, context_lens)
        new_seq_lens = batch.seq_lens + accepted.lens
        return self._result(batch, result, new_tokens.flatten(), new_tokens, accepted.lens, new_seq_lens, on_publish)

    def _agreed(self, plan: StepPlan | None) -> StepPlan:
        """Rank 0's plan: what is drafted depends on its clock and its indexing thread."""
        if self._tp.world_size > 1:
            plan = self._tp.broadcast_object(plan, src=0)
        assert plan is not None
        return plan

    def _captured_width(self) -> int | None:
        """The width that CUDA graphs were captured for: any other would run without. None where there are none."""
        return self.max_width if self.model_runner.decode_cuda_graph_runner is not None else None

    def _load(self, batch: Any, layout: StepLayout, context_lens: np.ndarray) -> None:
        """Turns the decode batch into a verify batch; the scheduler takes these changes back after the step."""
        device = batch.seq_lens.device
        request = layout.request.to(device)
        mask = None if self._is_ragged else full_mask(layout, context_lens, device)
        batch.forward_mode = ForwardMode.TARGET_VERIFY
        batch.spec_info = AgentVerifyInput(layout, device, mask)
        batch.input_ids = batch.spec_info.draft_token
        slots = batch.seq_lens[request] + layout.node.to(device)
        table = batch.req_to_token_pool.req_to_token
        batch.out_cache_loc = table[batch.req_pool_indices[request], slots].to(torch.int64)
        prepare_mamba_track_for_verify(batch)

    def _commit(self, batch: Any, accepted: Accepted, layout: StepLayout) -> None:
        """Makes the accepted paths the requests' sequences in the cache."""
        if not self._is_ragged:
            commit_mamba_states_after_verify(self._target_worker, batch, accepted.lens, accepted.rows, layout.width)
        if layout.tree.is_chain or (self._is_sync and _is_gapless(accepted, layout)):
            return
        move_accept_tokens_to_target_kvcache(batch, accepted.rows, accepted.lens - 1, self.token_to_kv_pool_allocator)

    def _add_logprobs(self, batch: Any, output: Any, accepted: Accepted) -> None:
        rows = accepted.rows
        if self._is_sync:  # columns nobody filled would cost a softmax over the vocabulary each
            rows = rows[:, : int(accepted.lens.max())]
        compute_spec_logprobs(batch, output, accepted.predict, accept_index=rows)

    def _new_tokens(self, accepted: Accepted) -> torch.Tensor:
        """[n, max_width] int32, the request's new tokens in front: the relay between steps has one fixed width."""
        rows = accepted.rows
        tokens = torch.zeros(rows.shape[0], self.max_width, dtype=torch.int32, device=rows.device)
        tokens[:, : rows.shape[1]] = accepted.predict[rows.clamp(min=0).long()]
        return tokens

    def _observe(self, plan: StepPlan, layout: StepLayout, accepted: Accepted, context_lens: np.ndarray) -> None:
        """Tells controller and statistics what the step was worth. Under overlap that would wait for the device."""
        lens = accepted.lens.tolist()
        num_requests, num_rows = len(lens), layout.request.numel()
        self._timer.end_step(num_requests, plan.width, int(context_lens.sum()), plan.draft_s, sum(lens))
        if layout.width > 1:
            is_row = np.arange(layout.width) < layout.num_nodes.numpy()[:, None]
            probability = np.where(is_row, plan.path_probability[:, : layout.width], np.float32(0.0))
            was_accepted = np.zeros(is_row.shape, dtype=bool)
            nodes = (accepted.rows - layout.first_row.view(-1, 1))[accepted.rows >= 0]
            was_accepted[np.repeat(np.arange(num_requests), lens), nodes.numpy()] = True
            self.controller.observe_acceptance(probability, was_accepted)
        self.statistics.count(
            StepFigures(
                batch_size=num_requests,
                rows=num_rows,
                drafted=num_rows - num_requests,
                accepted=sum(lens) - num_requests,
                draft_s=plan.draft_s,
            )
        )

    def _result(
        self,
        batch: Any,
        result: GenerationBatchResult,
        next_token_ids: torch.Tensor,
        new_tokens: torch.Tensor,
        lens: torch.Tensor,
        new_seq_lens: torch.Tensor,
        on_publish: Any,
    ) -> GenerationBatchResult:
        if on_publish is not None:
            on_publish(new_seq_lens)
        following = NgramVerifyInput(
            draft_token_num=self.max_width,
            new_seq_lens=new_seq_lens,
            accept_tokens=new_tokens.flatten(),
            accept_lens=lens,
        )
        return GenerationBatchResult(
            logits_output=result.logits_output,
            next_token_ids=next_token_ids,
            can_run_cuda_graph=result.can_run_cuda_graph,
            accept_lens=lens,
            new_seq_lens=new_seq_lens,
            next_draft_input=following,
            speculative_num_draft_tokens=self.max_width,
        )

    def _is_joint(self, info: Any) -> bool:
        """Whether SGLang's sampler judges top-k and top-p on one distribution; FlashInfer's does not with a min-p."""
        return get_exec().kernel.sampling_backend == "pytorch" or not info.need_min_p_sampling


def _tokens_ahead(spec_info: Any) -> list[list[int]]:
    """The last step's new tokens, which under overlap the requests do not have yet. Waits for that step."""
    lens = spec_info.accept_lens.tolist()
    tokens = spec_info.accept_tokens.view(len(lens), -1).tolist()
    return [row[:length] for row, length in zip(tokens, lens, strict=True)]


def _context_lens(requests: Sequence[Any], ahead: Sequence[Sequence[int]] | None) -> np.ndarray:
    """Tokens of each request that are in the cache: all but the last, which is the draft's root."""
    known = [len(request.origin_input_ids) + len(request.output_ids) for request in requests]
    if ahead is not None:
        known = [length + len(more) for length, more in zip(known, ahead, strict=True)]
    return np.array(known, dtype=np.int64) - 1


def _cut_at_ends(requests: Sequence[Any], accepted: Accepted, layout: StepLayout) -> Accepted:
    """Drops what lies behind a request's end. Only where the tokens are on the host and `output_ids` complete."""
    lens = accepted.lens.tolist()
    if all(length == 1 for length in lens):
        return accepted
    rows, predict = accepted.rows.tolist(), accepted.predict.tolist()
    kept = [
        length if length == 1 else num_kept(request, [predict[row] for row in path[:length]])
        for request, path, length in zip(requests, rows, lens, strict=True)
    ]
    if kept == lens:
        return accepted
    new_lens = torch.tensor(kept, dtype=torch.int32)
    is_kept = torch.arange(layout.width) < new_lens.view(-1, 1)
    return Accepted(new_lens, torch.where(is_kept, accepted.rows, -1), accepted.predict)


def _is_gapless(accepted: Accepted, layout: StepLayout) -> bool:
    """Whether every accepted path is the first rows of its request, so that nothing has to move in the cache."""
    straight = layout.first_row.view(-1, 1) + torch.arange(layout.width)
    return bool(((accepted.rows == straight) | (accepted.rows < 0)).all())
