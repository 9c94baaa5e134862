"""Every upstream name that AgentSched touches; see `agentinfer.runtime.seams`."""

from __future__ import annotations

from agentinfer.config import SchedulingConfig
from agentinfer.runtime.seams import rows_of_feature

_SRT = "sglang.srt"
_SCHEDULER = f"{_SRT}.managers.scheduler.Scheduler"
_POLICY = f"{_SRT}.managers.schedule_policy.SchedulePolicy"
_CACHE = f"{_SRT}.mem_cache.unified_radix_cache.UnifiedRadixCache"
_CORE = f"{_SRT}.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore"
_FULL = f"{_SRT}.mem_cache.unified_cache.components.full.FullComponent"
_TOKENIZER = f"{_SRT}.managers.tokenizer_manager.TokenizerManager"
_RESULTS = f"{_SRT}.managers.scheduler_components.batch_result_processor"

FILL_PREFILL_BATCH = f"{_SCHEDULER}._get_new_batch_prefill_raw"
ADD_TO_QUEUE = f"{_SCHEDULER}._add_request_to_queue"
INIT_DISPATCHER = f"{_SCHEDULER}.init_request_dispatcher"
INIT_POLICY = f"{_SCHEDULER}.init_schedule_policy"
CALC_PRIORITY = f"{_POLICY}.calc_priority"
BATCH_PROCESSED = f"{_SCHEDULER}.process_batch_result"
PREFIX_MATCHED = f"{_POLICY}.waiting_queue_prefix_matched"
RETRACTION_ORDER = f"{_SRT}.managers.schedule_batch.ScheduleBatch._get_decode_retraction_order"


_row = rows_of_feature(SchedulingConfig.feature)


_HOOKS = (
    _row(
        FILL_PREFILL_BATCH,
        ("self", "prefill_delayer_single_pass", "running_batch"),
        f"{_SCHEDULER}.get_new_batch_prefill",
        "walks the waiting queue in its order: before it the queue gets the plan's, without what is held back",
        "hook",
    ),
    _row(
        ADD_TO_QUEUE,
        ("self", "req", "is_retracted"),
        f"{_SCHEDULER}.handle_generate_request",
        "every request that begins to wait comes through it",
        "hook",
    ),
    _row(
        CALC_PRIORITY,
        ("self", "waiting_queue", "running_batch", "processed_tokens"),
        FILL_PREFILL_BATCH,
        "would sort the queue anew",
        "hook",
    ),
    _row(
        PREFIX_MATCHED,
        ("self", "waiting_queue"),
        f"{_SCHEDULER}.init_load_inquirer",
        "load reports ask it before they read what is cached of waiting prompts",
        "hook",
    ),
    _row(
        RETRACTION_ORDER,
        ("reqs",),
        f"{_SRT}.managers.schedule_batch.ScheduleBatch.retract_decode",
        "says which requests are taken back when memory runs out",
        "hook",
    ),
    _row(
        BATCH_PROCESSED,
        ("self", "batch", "result"),
        f"{_SCHEDULER}.event_loop_normal",
        "when a prefill batch is done: how fast the engine is",
        "hook",
    ),
    _row(
        INIT_DISPATCHER,
        ("self",),
        f"{_SCHEDULER}.__init__",
        "the scheduler learns to handle news of sessions",
        "hook",
    ),
    _row(
        INIT_POLICY,
        ("self",),
        f"{_SCHEDULER}.__init__",
        "after it the scheduler's prefix cache must be ours, or nothing is served",
        "hook",
    ),
)

_DOORS = (
    _row(
        f"{_SRT}.mem_cache.registry.register_radix_cache_backend",
        ("name", "factory"),
        None,
        "the registry of prefix caches",
        "registry",
        ("launcher", "scheduler"),
    ),
    _row(
        f"{_SRT}.mem_cache.unified_cache.tree_core_registry.register_tree_core_backend",
        ("name", "factory"),
        None,
        "the registry of tree cores",
        "registry",
    ),
    _row(
        f"{_SRT}.managers.io_struct.hook_custom_types",
        ("*new_types",),
        None,
        "the registry of messages between processes",
        "registry",
        ("launcher", "scheduler"),
    ),
    _row(
        f"{_SRT}.managers.io_struct.BaseReq",
        None,
        None,
        "base class of messages",
        "subclass",
        ("launcher", "scheduler"),
    ),
    _row(
        f"{_SRT}.mem_cache.registry.create_unified_radix_cache",
        ("ctx", "cache_class"),
        f"{_SRT}.mem_cache.registry.default_radix_cache_factory",
        "builds upstream's cache with its components and host tier, of our class",
        "call",
    ),
    *(
        _row(f"{_SRT}.mem_cache.cache_init_params.CacheInitParams.{field}", None, caller, reason, "read")
        for field, caller, reason in (
            (
                "tree_core_backend",
                f"{_SRT}.mem_cache.unified_cache.tree_core_registry.select_tree_core_backend",
                "our cache's tree core",
            ),
            ("component_registry_override", f"{_CACHE}.__init__", "our cache's full-attention component"),
        )
    ),
    _row(
        f"{_SRT}.utils.rank_consensus_checker.rank_consensus",
        ("func", "same_params", "same_results", "**kwargs"),
        f"{_SRT}.mem_cache.unified_radix_cache",
        "compares between ranks what the cache is asked to do, where SGLang is told to",
        "call",
    ),
    _row(
        f"{_SRT}.entrypoints.http_server.get_global_state",
        (),
        None,
        "the tokenizer manager, through which messages go and come",
        "call",
        ("launcher",),
    ),
    _row(
        f"{_TOKENIZER}._dispatch_to_scheduler",
        ("self", "obj"),
        f"{_TOKENIZER}._send_one_request",
        "sends as requests are sent, so that all ranks hear the same in the same order",
        "call",
        ("launcher",),
    ),
    _row(
        f"{_TOKENIZER}._result_dispatcher",
        None,
        f"{_TOKENIZER}.handle_loop",
        "the schedulers' answers arrive here",
        "read",
        ("launcher",),
    ),
    _row(
        "sglang.utils.TypeBasedDispatcher",
        ("self", "mapping"),
        None,
        "a dispatcher is extended by another one",
        "call",
        ("launcher", "scheduler"),
    ),
)

_SUBCLASSED = tuple(
    _row(f"{owner}.{name}", parameters, caller, reason, "subclass")
    for owner, name, parameters, caller, reason in (
        (_CACHE, "insert", ("self", "params"), f"{_CACHE}.insert_req", "the node in which a context ends"),
        (
            _CACHE,
            "insert_req",
            ("self", "req", "up_to", "**kwargs"),
            f"{_SRT}.mem_cache.common.release_kv_cache",
            "a request's context is in the cache when it ends",
        ),
        (
            _CACHE,
            "cache_unfinished_req",
            ("self", "req", "chunked", "**kwargs"),
            f"{_SRT}.mem_cache.common.maybe_cache_unfinished_req",
            "a request's prompt is in the cache",
        ),
        (
            _CACHE,
            "on_release",
            ("self", "req", "inserted"),
            f"{_SRT}.mem_cache.common.release_kv_cache",
            "a request ended, or was taken back",
        ),
        (
            _CACHE,
            "_evict_device_leaf",
            ("self", "node_id", "tracker"),
            f"{_CACHE}._evict_components",
            "which leaf goes is compared between ranks",
        ),
        (
            f"{_SRT}.mem_cache.base_prefix_cache.BasePrefixCache",
            "finish",
            ("self", "handle", "outcome"),
            f"{_SCHEDULER}._release_aborted_request",
            "a waiting request was aborted",
        ),
        (_CORE, "reset", ("self",), f"{_CACHE}._reset_full", "the tree is empty"),
        (
            _CORE,
            "sanity_check",
            ("self", "ongoing_write_through", "ongoing_load_back"),
            f"{_CACHE}.sanity_check",
            "the mirror is checked as the tree is, when the engine is idle",
        ),
        (
            _CORE,
            "commit_load_back",
            ("self", "node_id", "device_indices", "kv_xfer", "comp_xfers"),
            None,
            "nodes come back from the host",
        ),
        (
            _CORE,
            "_add_new_node",
            ("self", "parent", "key", "value", "priority", "session_id", "rotation_base"),
            f"{_CORE}._insert_commit_step",
            "a leaf is new",
        ),
        (
            _CORE,
            "_unevict_node_on_insert",
            ("self", "node", "fresh_value", "session_id"),
            f"{_CORE}._insert_walk_step",
            "a node of the host was computed again",
        ),
        (_CORE, "_split_node", ("self", "key", "child", "split_len"), f"{_CORE}._insert_walk_step", "a node is split"),
        (
            _CORE,
            "_evict_component_and_detach_lru",
            ("self", "node", "comp", "device_frees", "host_frees", "target", "tracker"),
            f"{_CORE}._demote",
            "a node leaves the device",
        ),
        (_FULL, "_evict_device_start", ("self", "request_cnt"), None, "an eviction begins"),
        (
            _FULL,
            "_evict_device_next_node",
            ("self", "tracker", "device_frees", "host_frees"),
            f"{_SRT}.mem_cache.unified_cache.components.base.TreeComponent.evict_device_next_node",
            "which leaf goes next",
        ),
        (_FULL, "_evict_device_end", ("self",), None, "an eviction ends"),
    )
)

_READ = (
    *(
        _row(f"{_CORE}.{name}", None, None, reason, "read")
        for name, reason in (
            ("root_node", "named otherwise in the mirror"),
            ("evictable_device_leaves", "leaves that may go: on the device, without children there, unlocked"),
            ("node_by_id", "a node's key and value"),
            ("_collect_all_nodes", "the tree, to compare with the mirror"),
            ("components_by_type", "the components"),
        )
    ),
    *(
        _row(f"{_SCHEDULER}.{name}", None, None, reason, "read")
        for name, reason in (
            ("waiting_queue", "replaced while a batch is filled"),
            ("running_batch", "requests in the engine"),
            ("last_batch", "as above"),
            ("result_queue", "as above"),
            ("chunked_req", "as above"),
            ("grammar_manager", "requests that wait for their grammar"),
            ("enable_priority_preemption", "whether a full batch is looked at again"),
            ("is_hybrid_swa", "as above"),
            ("enable_priority_scheduling", "whether requests' priorities count"),
            ("schedule_low_priority_values_first", "which of them go first"),
            ("_request_dispatcher", "handlers of messages"),
        )
    ),
    *(
        _row(f"{_SRT}.managers.schedule_batch.Req.{name}", None, None, reason, "read")
        for name, reason in (
            ("rid", "names a turn"),
            ("origin_input_ids", "the prompt"),
            ("output_ids", "the reply so far"),
            ("finished", "whether it ended"),
            ("finished_reason", "whether it was aborted"),
            ("last_node", "where its prompt ends in the cache"),
            ("priority", "goes before the policy's order"),
            ("sampling_params", "carries the hints"),
            ("num_matched_prefix_tokens", "what load reports take as cached"),
        )
    ),
    _row(
        f"{_SRT}.managers.schedule_batch.ScheduleBatch.extend_num_tokens",
        None,
        None,
        "prompt tokens that a batch computes",
        "read",
    ),
    _row(
        f"{_RESULTS}.release_kv_cache",
        None,
        f"{_RESULTS}.SchedulerBatchResultProcessor._handle_finish_state_updated_req",
        "every request that ends gives its memory back through the prefix cache",
        "read",
    ),
)

SEAMS = (*_HOOKS, *_DOORS, *_SUBCLASSED, *_READ)
