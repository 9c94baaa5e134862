"""AgentSched as SGLang's scheduling policy and prefix cache: registered when on, and proved to be what runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from agentinfer.config import AgentInferConfig, SchedulingConfig
from agentinfer.errors import ConfigError, SeamError
from agentinfer.runtime.named_features import AGENT_CACHE
from agentinfer.runtime.scheduling import seam_rows
from agentinfer.runtime.scheduling.hooks import SchedulerHooks


def install(config: AgentInferConfig, hook: Callable[..., None]) -> None:
    """Registers the prefix cache and the messages in this process, and the hooks around the scheduler."""
    from sglang.srt.managers.io_struct import hook_custom_types
    from sglang.srt.mem_cache.registry import get_radix_cache_factory, register_radix_cache_backend

    from agentinfer.runtime.scheduling.messages import SchedulingReport, SessionNews

    hooks = SchedulerHooks()
    hook_custom_types(SessionNews, SchedulingReport)
    if get_radix_cache_factory(AGENT_CACHE) is None:
        register_radix_cache_backend(AGENT_CACHE, partial(_make_cache, config.scheduling, hooks))
    hook(seam_rows.FILL_PREFILL_BATCH, hooks.fill_prefill_batch, "around")
    hook(seam_rows.ADD_TO_QUEUE, hooks.add_to_queue, "around")
    hook(seam_rows.BATCH_PROCESSED, hooks.batch_processed, "after")
    hook(seam_rows.CALC_PRIORITY, hooks.keep_order, "around")
    hook(seam_rows.PREFIX_MATCHED, hooks.note_matched, "around")
    hook(seam_rows.RETRACTION_ORDER, hooks.retraction_order, "around")
    hook(seam_rows.INIT_DISPATCHER, partial(_listen, hooks), "after")
    hook(seam_rows.INIT_POLICY, _require_our_cache, "after")


def _make_cache(settings: SchedulingConfig, hooks: SchedulerHooks, ctx: Any) -> Any:
    """The scheduler's prefix cache. Raises ConfigError where there is none that could be ours."""
    from sglang.srt.mem_cache.registry import create_unified_radix_cache

    from agentinfer.runtime.scheduling.book import TurnBook
    from agentinfer.runtime.scheduling.parts import make_policy
    from agentinfer.runtime.scheduling.radix_cache import AgentRadixCache, register_tree_core

    if ctx.disable_radix_cache:
        raise ConfigError(
            "AgentSched schedules by what is cached, but SGLang runs without its prefix cache (--disable-radix-cache, "
            f"or the model does not allow one). Serve without it: AGENTINFER_DISABLE={SchedulingConfig.feature}"
        )
    if ctx.is_hybrid_swa and ctx.full_tokens_per_layer == 0:
        raise ConfigError(
            "AgentSched keeps what will be used again, but this model has sliding windows only, of which nothing older "
            f"than the window is kept. Serve without it: AGENTINFER_DISABLE={SchedulingConfig.feature}"
        )
    register_tree_core()
    book = TurnBook(make_policy(settings, ctx.params.token_to_kv_pool_allocator.size_full))
    hooks.bind(book)
    return create_unified_radix_cache(ctx, cache_class=partial(AgentRadixCache, book=book))


def _listen(hooks: SchedulerHooks, result: None, scheduler: Any) -> None:
    from sglang.utils import TypeBasedDispatcher

    from agentinfer.runtime.scheduling.messages import SessionNews

    scheduler._request_dispatcher += TypeBasedDispatcher([(SessionNews, partial(hooks.take_news, scheduler))])


def _require_our_cache(result: None, scheduler: Any) -> None:
    from agentinfer.runtime.scheduling.radix_cache import AgentRadixCache
    from agentinfer.runtime.scheduling.tree_core import AgentTreeCore

    cache = scheduler.tree_cache
    core = getattr(cache, "tree_core", None)
    if type(cache) is not AgentRadixCache or type(core) is not AgentTreeCore:
        raise SeamError(
            f"AgentSched is on, but the scheduler's prefix cache is a {type(cache).__name__} over a "
            f"{type(core).__name__}. Give no other --radix-cache-backend, or serve without it: "
            f"AGENTINFER_DISABLE={SchedulingConfig.feature}"
        )
