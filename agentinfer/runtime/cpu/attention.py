"""Attention backend `torch_native` for the CPU engine: decode, extend, chain and tree verify, sliding windows.

Upstream's backend of that name builds its lists anew in every layer, computes a query row for every cached token,
gathers keys by advanced indexing (ten times `index_select`'s time), and has no TARGET_VERIFY. Here what to gather and
what to mask is planned once a forward pass; `attention_math` computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from agentinfer.runtime.cpu.attention_math import (
    KEY_BLOCK,
    QUERY_CHUNK,
    attend_batch,
    attend_rows,
    causal_bias,
    round_up,
)

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

# A prefill of few tokens against 512 padded keys costs up to four times its share. float32 is the precision for
# comparing and pays it; reduced precision pads an extend to whole cache lines only. Decode and verify always take whole
# blocks, so speculation does not change greedy output in any precision.
EXTEND_KEY_MULTIPLE = {torch.float32: KEY_BLOCK}
EXTEND_KEY_MULTIPLE_REDUCED = 64


@dataclass(frozen=True, slots=True)
class Sequence:
    """One request of the batch: its row in the slot table, its query rows in the batch, and where they stand."""

    table_row: int
    first_row: int
    num_queries: int
    num_keys: int
    tree: torch.Tensor | None = None

    @property
    def first_position(self) -> int:
        """Position of the first query; in a tree, the length of the prefix."""
        return self.num_keys - self.num_queries


@dataclass(frozen=True, slots=True)
class BatchStep:
    """Sequences that one call serves. `rows` are their query rows, sequence after sequence, `num_queries` for each.

    Where sequences have different numbers of rows, the last one of a shorter stands in for what it lacks; `kept` are
    the results that count, None for all.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    bias: torch.Tensor
    num_queries: int
    kept: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class ExtendStep:
    """One sequence's prefill: slots of its keys, and its chunks as (query rows, gathered keys, bias)."""

    slots: torch.Tensor
    chunks: tuple[tuple[slice, slice, torch.Tensor], ...]


class CpuAttnBackend(TorchNativeAttnBackend):  # type: ignore[misc]
    """See the module. State between `init_forward_metadata` and the layers' calls is that forward pass's plan."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._sequences: list[Sequence] = []
        self._is_uniform = False
        # (window, in the sliding-window pool, dtype) -> steps. Layers differ only in these, so a plan serves them all.
        self._plans: dict[tuple[int | None, bool, torch.dtype], list[BatchStep | ExtendStep]] = {}

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Reads the batch's lengths once; plans follow when the first layer of a kind asks."""
        super().init_forward_metadata(forward_batch)
        self._plans = {}
        self._sequences = []
        mode = forward_batch.forward_mode
        if mode.is_idle():
            return
        table_rows, lens = forward_batch.req_pool_indices.tolist(), forward_batch.seq_lens.tolist()
        self._is_uniform = mode.is_decode() or mode.is_target_verify()
        if mode.is_decode():
            self._sequences = [Sequence(row, i, 1, n) for i, (row, n) in enumerate(zip(table_rows, lens, strict=True))]
        elif mode.is_target_verify():
            counts, trees = _drafts(forward_batch.spec_info, lens)
            first_row = 0
            for row, prefix, count, tree in zip(table_rows, lens, counts, trees, strict=True):
                self._sequences.append(Sequence(row, first_row, count, prefix + count, tree))
                first_row += count
        else:
            first_row = 0
            for row, total, num_queries in zip(table_rows, lens, forward_batch.extend_seq_lens.tolist(), strict=True):
                if num_queries > 0:
                    self._sequences.append(Sequence(row, first_row, num_queries, total))
                first_row += num_queries

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """[tokens, heads * v_head_dim] for one new token a sequence."""
        if _is_upstreams(layer, forward_batch):
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """[tokens, heads * v_head_dim] for prefill (chunked and mixed too), draft extend and verify."""
        if _is_upstreams(layer, forward_batch):
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache)

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
    ) -> torch.Tensor:
        if save_kv_cache and k is not None and v is not None:
            where = KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, where, k, v)
        key_buffer = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        value_buffer = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        # Rows beyond the batch's own (padding of data parallelism) must hold numbers, not memory.
        out = q.new_zeros((queries.shape[0], layer.tp_q_head_num, layer.v_head_dim))
        for step in self._plan(layer, q.dtype):
            keys = key_buffer.index_select(0, step.slots).to(q.dtype)
            values = value_buffer.index_select(0, step.slots).to(q.dtype)
            if isinstance(step, BatchStep):
                batch = step.bias.shape[0]
                mine = queries.index_select(0, step.rows).view(batch, step.num_queries, *queries.shape[1:])
                keys, values = keys.view(batch, -1, *keys.shape[1:]), values.view(batch, -1, *values.shape[1:])
                result = attend_batch(mine, keys, values, step.bias, layer.scaling, layer.logit_cap)
                result, rows = result.flatten(0, 1), step.rows
                if step.kept is not None:
                    result, rows = result.index_select(0, step.kept), rows.index_select(0, step.kept)
                out.index_copy_(0, rows, result)
            else:
                for chunk, seen, bias in step.chunks:
                    out[chunk] = attend_rows(
                        queries[chunk], keys[seen], values[seen], bias, layer.scaling, layer.logit_cap
                    )
        return out.view(queries.shape[0], -1)

    def _plan(self, layer: RadixAttention, dtype: torch.dtype) -> list[BatchStep | ExtendStep]:
        window = layer.sliding_window_size
        window = window if window is not None and window > -1 else None
        in_swa_pool = bool(self.use_sliding_window_kv_pool and self.token_to_kv_pool.layers_mapping[layer.layer_id][1])
        kind = (window, in_swa_pool, dtype)
        plan = self._plans.get(kind)
        if plan is None:
            plan = (
                self._batch_steps(*kind) if self._is_uniform else [self._extend_step(s, *kind) for s in self._sequences]
            )
            self._plans[kind] = plan
        return plan

    def _batch_steps(self, window: int | None, in_swa_pool: bool, dtype: torch.dtype) -> list[BatchStep | ExtendStep]:
        """Sequences that span equally many key blocks share a call: no row's bits depend on a neighbour's length."""
        by_width: dict[int, list[tuple[Sequence, range]]] = {}
        for sequence in self._sequences:
            keys = _key_range(sequence.first_position, sequence.num_keys, window, KEY_BLOCK)
            by_width.setdefault(len(keys), []).append((sequence, keys))
        steps: list[BatchStep | ExtendStep] = []
        for members in by_width.values():
            counts = torch.tensor([s.num_queries for s, _ in members]).unsqueeze(1)
            columns = torch.arange(int(counts.max()))
            rows = torch.tensor([s.first_row for s, _ in members]).unsqueeze(1) + torch.minimum(columns, counts - 1)
            bias = [
                causal_bias(s.first_position, s.num_queries, keys, window=window, tree=s.tree, dtype=dtype)
                for s, keys in members
            ]
            kept = None
            if int(counts.min()) < len(columns):
                kept = (columns < counts).flatten().nonzero().view(-1)
                bias = [each[columns.clamp(max=len(each) - 1)] for each in bias]
            slots = torch.cat([self._slots(s, keys, in_swa_pool) for s, keys in members])
            steps.append(BatchStep(rows.flatten(), slots, torch.stack(bias), len(columns), kept))
        return steps

    def _extend_step(self, sequence: Sequence, window: int | None, in_swa_pool: bool, dtype: torch.dtype) -> ExtendStep:
        multiple = EXTEND_KEY_MULTIPLE.get(dtype, EXTEND_KEY_MULTIPLE_REDUCED)
        all_keys = _key_range(sequence.first_position, sequence.num_keys, window, multiple)
        chunks = []
        for done in range(0, sequence.num_queries, QUERY_CHUNK):
            num_queries = min(QUERY_CHUNK, sequence.num_queries - done)
            position, row = sequence.first_position + done, sequence.first_row + done
            keys = _key_range(position, position + num_queries, window, multiple)
            bias = causal_bias(position, num_queries, keys, window=window, tree=None, dtype=dtype)
            seen = slice(keys.start - all_keys.start, keys.stop - all_keys.start)
            chunks.append((slice(row, row + num_queries), seen, bias))
        return ExtendStep(self._slots(sequence, all_keys, in_swa_pool), tuple(chunks))

    def _slots(self, sequence: Sequence, keys: range, in_swa_pool: bool) -> torch.Tensor:
        """Pool rows of the keys; padding repeats the last key, which is finite where unused memory need not be."""
        positions = torch.arange(keys.start, keys.stop).clamp_(max=sequence.num_keys - 1)
        slots = self.req_to_token_pool.req_to_token[sequence.table_row].index_select(0, positions)
        if in_swa_pool:
            slots = self.token_to_kv_pool.translate_loc_from_full_to_swa(slots)
        return slots.long()


def _key_range(first_query: int, num_keys: int, window: int | None, multiple: int) -> range:
    """Whole multiples that hold every key the queries may see; aligned, so skipping blocks changes no bit."""
    start = 0 if window is None else max(0, first_query - window) // multiple * multiple
    return range(start, round_up(num_keys, multiple))


def _drafts(spec_info: Any, prefix_lens: list[int]) -> tuple[Iterable[int], list[torch.Tensor | None]]:
    """Each request's number of rows, and its tree mask [rows, rows] or None for a chain.

    AGENT_SAM's input says both itself, and its rows are ragged; SGLang's own are of one width.
    """
    if hasattr(spec_info, "row_counts"):
        return spec_info.row_counts, spec_info.trees
    width = spec_info.draft_token_num
    return [width] * len(prefix_lens), _trees(spec_info, prefix_lens, width)


def _trees(spec_info: Any, prefix_lens: list[int], width: int) -> list[torch.Tensor | None]:
    """Each request's tree mask [width, width], or None for a chain, which needs none.

    The CPU draft workers send masks of the tree alone (QLEN_ONLY); FULL_MASK, with the prefix's columns, is taken too.
    """
    mask = spec_info.custom_mask
    if mask is None or spec_info.tree_topk == 1:
        return [None] * len(prefix_lens)
    flat = mask.view(-1).bool()
    tree_only = len(prefix_lens) * width * width
    full = tree_only + sum(prefix_lens) * width
    if flat.numel() == full:
        pieces = flat.split([(prefix + width) * width for prefix in prefix_lens])
        return [piece.view(width, -1)[:, -width:] for piece in pieces]
    if flat.numel() < tree_only:
        raise ValueError(
            f"custom_mask holds {flat.numel()} booleans for {len(prefix_lens)} trees of {width} nodes; "
            f"expected {tree_only} (tree only) or {full} (with prefix)"
        )
    return list(flat[:tree_only].view(-1, width, width))


def _is_upstreams(layer: RadixAttention, forward_batch: ForwardBatch) -> bool:
    """Encoder layers and encoder-decoder batches: upstream has what they need, and nothing is gained on them."""
    return bool(
        layer.is_cross_attention
        or layer.attn_type == AttentionType.ENCODER_ONLY
        or forward_batch.encoder_lens is not None
    )
