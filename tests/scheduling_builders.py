"""SGLang's prefix cache as AgentSched runs it, on the CPU, without server or model; and a policy that only orders."""

from __future__ import annotations

import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from agentinfer.radix_ext.facade import Plan, TurnRequest
from agentinfer.radix_ext.paths import PathTree
from agentinfer.runtime.requests import ARRIVAL_KEY, HINTS_KEY


@dataclass
class RecordingPolicy:
    """Last come, first served, and every event it was told of. `held` requests are kept back."""

    paths: PathTree = field(default_factory=PathTree)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    waiting: list[str] = field(default_factory=list)

    def engine_measured(self, prefill_tokens_per_s: float) -> None:
        self.events.append(("measured", prefill_tokens_per_s))

    def turn_arrived(self, turn: TurnRequest) -> None:
        self.events.append(("arrived", turn.rid, turn.session))
        self.waiting.append(turn.rid)

    def turn_started(self, rid: str, now_s: float) -> None:
        self.events.append(("started", rid))
        self.waiting.remove(rid)

    def turn_requeued(self, rid: str, now_s: float) -> None:
        self.events.append(("requeued", rid))
        self.waiting.append(rid)

    def turn_finished(self, rid: str, now_s: float, context_tokens: int, tool: str | None, is_last: bool) -> None:
        self.events.append(("finished", rid, context_tokens, is_last))

    def turn_dropped(self, rid: str, now_s: float) -> None:
        self.events.append(("dropped", rid))
        if rid in self.waiting:
            self.waiting.remove(rid)

    def tool_called(self, session: str, tools: Sequence[str], started_s: float) -> None:
        self.events.append(("called", session, tools, started_s))

    def session_ended(self, session: str) -> None:
        self.events.append(("ended", session))
        self.paths.forget(session)

    def plan(self, now_s: float, kv: Any) -> Any:
        return Plan(tuple(rid for rid in reversed(self.waiting) if rid not in self.held))

    def wake_s(self, now_s: float) -> float | None:
        return None

    def victims(self, now_s: float) -> Iterator[int]:
        """Nobody's leaves first, then any others."""
        yield from self.paths.nobodys_leaves()
        is_progress = True
        while is_progress:
            is_progress = False
            for node in [node for node in self.paths._nodes if self.paths.is_leaf(node)]:
                yield node
                is_progress = is_progress or node not in self.paths

    def retraction_order(self, rids: Sequence[str], now_s: float) -> list[str]:
        return sorted(rids)

    def snapshot(self, now_s: float) -> dict[str, Any]:
        return {"waiting": len(self.waiting)}


class Request:
    """As much of SGLang's `Req` as the prefix cache and the scheduler's hooks look at."""

    def __init__(self, rid: str, tokens: Sequence[int], session: str | None = None, **hints: Any) -> None:
        self.rid = rid
        self.origin_input_ids = array.array("q", tokens)
        self.output_ids = array.array("q")
        custom = {HINTS_KEY: {"session": session, **hints}, ARRIVAL_KEY: 0.0} if session is not None else None
        self.sampling_params = SimpleNamespace(custom_params=custom)
        self.session_id = session
        self.session = None
        self.priority: int | None = None
        self.extra_key = self.cache_salt = self.kv_rotation_base = None
        self.skip_radix_cache_insert = self.swa_prefix_lock_released = False
        self.finished_reason: Any = None
        self.to_finish: Any = None
        self.last_node: int | None = None
        self.lock_receipt: Any = None
        self.prefix_indices: Any = None
        self.num_matched_prefix_tokens = 0
        self.kv: Any = None
        self.num_cached = 0
        self.reasoning_tokens = 0

    @property
    def seqlen(self) -> int:
        return len(self.origin_input_ids) + len(self.output_ids)

    def owned_kv_len(self) -> int:
        return int(self.kv.kv_committed_len)

    def get_fill_ids(self) -> array.array[int]:
        return self.origin_input_ids + self.output_ids

    def finished(self) -> bool:
        return self.finished_reason is not None

    def finish(self, is_abort: bool = False) -> None:
        kind = "abort" if is_abort else "stop"
        self.finished_reason = SimpleNamespace(to_json=lambda: {"type": kind})


class CacheHarness:
    """A cache of `size` tokens, page size 1, and what the engine does to it for a request."""

    def __init__(self, size: int, policy: Any = None, cache_class: Any = None, num_requests: int = 16) -> None:
        """`cache_class(params)`: another cache than ours, to compare with."""
        import torch
        from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
        from sglang.srt.mem_cache.unified_cache.components import ComponentType
        from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

        from agentinfer.runtime.scheduling.book import TurnBook
        from agentinfer.runtime.scheduling.radix_cache import AgentRadixCache, register_tree_core

        set_global_server_args_for_scheduler(
            ServerArgs(model_path="dummy", device="cpu", attention_backend="torch_native")
        )
        register_tree_core()
        self.size = size
        self.pool = ReqToTokenPool(size=num_requests, max_context_len=1024, device="cpu", enable_memory_saver=False)
        self.allocator = TokenToKVPoolAllocator(size, torch.float16, "cpu", SimpleNamespace(), False)
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=self.pool,
            token_to_kv_pool_allocator=self.allocator,
            page_size=1,
            tree_components=(ComponentType.FULL,),
        )
        self.policy = policy or RecordingPolicy()
        self.book = TurnBook(self.policy)
        self.cache = cache_class(params) if cache_class else AgentRadixCache(params, self.book)
        self.running: list[Request] = []

    def start(self, request: Request) -> bool:
        """Prefill. False where there is no room for its prompt."""
        import torch
        from sglang.srt.managers.schedule_batch import ReqKvInfo
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
        from sglang.srt.mem_cache.common import maybe_cache_unfinished_req
        from sglang.srt.mem_cache.radix_cache import RadixKey

        prompt = request.get_fill_ids()
        match = self.cache.match_prefix(MatchPrefixParams(key=RadixKey(token_ids=prompt[:-1])))
        receipt = self.cache.inc_lock_ref(match.last_device_node).to_dec_params()
        cached = len(match.device_indices)
        slots = self._alloc(len(prompt) - cached)
        if slots is None or self.pool.available_size() == 0:
            if slots is not None:
                self.allocator.free(slots)
            self.cache.dec_lock_ref(match.last_device_node, receipt)
            return False
        request.last_node, request.lock_receipt = match.last_device_node, receipt
        request.prefix_indices = match.device_indices
        request.num_cached = cached
        request.kv = ReqKvInfo(cache_protected_len=cached)
        self.pool.alloc([request])
        row = torch.cat([match.device_indices, slots]).to(torch.int32)
        self.pool.write((request.kv.req_pool_idx, slice(0, len(prompt))), row)
        request.kv.kv_committed_len = request.kv.kv_allocated_len = len(prompt)
        self.book.started([request])
        self.running.append(request)
        maybe_cache_unfinished_req(request, self.cache)
        return True

    def decode(self, request: Request, token: int) -> bool:
        """One more token of the reply. False where there is no room."""
        slots = self._alloc(1)
        if slots is None:
            return False
        length = request.kv.kv_allocated_len
        self.pool.write((request.kv.req_pool_idx, slice(length, length + 1)), slots.to(dtype=self._row_type))
        request.kv.kv_committed_len = request.kv.kv_allocated_len = length + 1
        request.output_ids.append(token)
        return True

    def end(self, request: Request, is_abort: bool = False) -> None:
        from sglang.srt.mem_cache.common import release_kv_cache

        request.finish(is_abort)
        release_kv_cache(request, self.cache)
        self.running.remove(request)

    def retract(self, request: Request) -> None:
        from sglang.srt.mem_cache.common import release_kv_cache

        release_kv_cache(request, self.cache, is_insert=False)
        self.running.remove(request)
        request.last_node = request.lock_receipt = None
        self.book.arrived(request)

    def evict(self, num_tokens: int) -> int:
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        return int(self.cache.evict(EvictParams(num_tokens=num_tokens)).num_tokens_evicted)

    def check(self) -> None:
        """Tree, mirror and memory agree."""
        self.cache.sanity_check()
        self.book.check_integrity()
        private = sum(each.kv.kv_allocated_len - each.kv.cache_protected_len for each in self.running)
        cached = self.cache.full_evictable_size() + self.cache.full_protected_size()
        free = self.allocator.available_size()
        assert free + cached + private == self.size, f"{free} free, {cached} cached, {private} of running requests"

    @property
    def _row_type(self) -> Any:
        return self.pool.req_to_token.dtype

    def _alloc(self, num_tokens: int) -> Any:
        shortfall = num_tokens - self.allocator.available_size()
        if shortfall > 0:
            self.evict(shortfall)
        return self.allocator.alloc(num_tokens)
