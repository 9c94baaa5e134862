"""Every upstream name that AGENT_SAM touches; see `agentinfer.runtime.seams`."""

from __future__ import annotations

from agentinfer.config import SpeculationConfig
from agentinfer.runtime.seams import rows_of_feature

_SRT = "sglang.srt"
_SPEC = f"{_SRT}.speculative"
INIT_WORKER = f"{_SRT}.managers.scheduler.Scheduler.maybe_init_draft_worker"
_RUN_BATCH = f"{_SRT}.managers.scheduler.Scheduler.run_batch"


_row = rows_of_feature(SpeculationConfig.feature)


SEAMS = (
    _row(
        f"{_SPEC}.spec_info.SpeculativeAlgorithm.register",
        ("cls", "name", "supports_overlap", "validate_server_args", "spec_class"),
        None,
        "the registry of speculative algorithms",
        "registry",
        ("launcher", "scheduler"),
    ),
    _row(
        f"{_SPEC}.spec_registry.CustomSpecAlgo",
        ("self", "name", "factory", "supports_overlap", "validate_server_args"),
        f"{_SPEC}.spec_info.SpeculativeAlgorithm.register",
        "base of a registered algorithm; it lacks three methods that the scheduler calls, which we add",
        "subclass",
        ("launcher", "scheduler"),
    ),
    _row(
        f"{_SPEC}.spec_info.SpeculativeAlgorithm.create_future_map",
        ("self", "device", "req_to_token_pool", "needs_cpu_seq_lens", "needs_confidence_relay"),
        f"{_SRT}.managers.scheduler.Scheduler.init_overlap",
        "the scheduler calls it on every algorithm; CustomSpecAlgo has none",
        "call",
    ),
    _row(
        f"{_SPEC}.spec_info.SpeculativeAlgorithm.carries_draft_hidden_states",
        ("self",),
        f"{_SRT}.managers.scheduler.Scheduler.init_disaggregation",
        "as above",
        "call",
    ),
    _row(
        f"{_SPEC}.spec_info.SpeculativeAlgorithm.need_topk",
        ("self",),
        f"{_SRT}.managers.overlap_utils.FutureMap",
        "as above",
        "call",
    ),
    _row(
        f"{_SPEC}.spec_info.SpeculativeAlgorithm.is_ngram",
        ("self",),
        f"{_SRT}.managers.scheduler.Scheduler._relay_forward_payload",
        "drafts without a model: NGRAM's branches relay accepted tokens and keep no draft cache",
        "subclass",
        ("launcher", "scheduler"),
    ),
    _row(
        INIT_WORKER,
        ("self",),
        f"{_SRT}.managers.scheduler.Scheduler.init_model_worker",
        "after it the scheduler's worker must be ours, or nothing is served",
        "hook",
    ),
    _row(
        f"{_SPEC}.base_spec_worker.BaseSpecWorker",
        ("self",),
        f"{_SRT}.managers.scheduler_components.batch_result_processor",
        "base class of the worker",
        "subclass",
    ),
    _row(
        f"{_SPEC}.ngram_worker.NGRAMWorker.forward_batch_generation",
        ("self", "batch", "on_publish", "pp_proxy_tensors"),
        _RUN_BATCH,
        "the signature that our worker has too: the scheduler runs each batch through it",
        "subclass",
    ),
    _row(
        f"{_SPEC}.base_spec_worker.BaseSpecWorker.note_request_finished",
        ("self", "rid", "natural_stop"),
        f"{_SRT}.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
        "._handle_finish_state_updated_req",
        "tells that a request ended, so that its text goes to the session's memory",
        "subclass",
    ),
    _row(
        f"{_SPEC}.ngram_info.NgramVerifyInput",
        (
            "self",
            "draft_token",
            "custom_mask",
            "positions",
            "retrieve_index",
            "retrieve_next_token",
            "retrieve_next_sibling",
            "draft_token_num",
            "future_indices",
            "new_seq_lens",
            "accept_tokens",
            "accept_lens",
        ),
        f"{_SPEC}.ngram_worker",
        "base class of a step's input, which schedulers filter, merge and relay, and attention backends read",
        "subclass",
    ),
    *(
        _row(f"{_SRT}.managers.utils.GenerationBatchResult.{field}", None, caller, reason, "read")
        for field, caller, reason in (
            ("accept_lens", _RUN_BATCH.replace("scheduler.Scheduler.run_batch", "utils"), "tokens a request gained"),
            ("new_seq_lens", _RUN_BATCH, "where the next step starts"),
            ("next_draft_input", _RUN_BATCH, "what the next step is given"),
            (
                "speculative_output_stride",
                f"{_SRT}.managers.scheduler_components.batch_result_processor._get_speculative_output_stride",
                "how far apart the requests' tokens are in a result",
            ),
        )
    ),
    _row(
        f"{_SRT}.managers.tp_worker.TpModelWorker.forward_batch_generation",
        (
            "self",
            "batch",
            "forward_batch",
            "pp_proxy_tensors",
            "is_verify",
            "skip_attn_backend_init",
            "capture_hidden_mode",
        ),
        f"{_SPEC}.ngram_worker.NGRAMWorker.forward_batch_generation",
        "the target model's forward pass",
        "call",
    ),
    _row(
        f"{_SRT}.layers.logprob_processor.compute_spec_logprobs",
        ("batch", "logits_output", "predict", "accept_index", "chain_stride"),
        f"{_SPEC}.ngram_worker",
        "log-probabilities of a step's tokens, in the form that results have",
        "call",
    ),
    _row(
        f"{_SPEC}.spec_utils.move_accept_tokens_to_target_kvcache",
        ("batch", "accept_index", "num_correct_drafts", "token_to_kv_pool_allocator"),
        f"{_SPEC}.ngram_worker",
        "an accepted path that leaves out nodes becomes a gapless sequence",
        "call",
    ),
    _row(
        f"{_SPEC}.spec_utils.GrammarTree.from_host",
        ("cls", "retrieve_next_token", "retrieve_next_sibling", "draft_token"),
        f"{_SPEC}.ngram_worker",
        "a draft tree in the form that the grammar walks",
        "call",
    ),
    _row(
        f"{_SPEC}.spec_utils.build_grammar_vocab_mask",
        ("reqs", "tree", "sampling_info", "device", "barrier"),
        f"{_SPEC}.ngram_worker",
        "which tokens a grammar allows at each node",
        "call",
    ),
    _row(
        f"{_SPEC}.spec_utils.record_stream_for_v2_verify",
        ("batch", "verify_input", "fwd_stream"),
        f"{_SPEC}.ngram_worker",
        "keeps the batch's device tensors alive across streams",
        "call",
    ),
    _row(
        f"{_SRT}.layers.sampler.Sampler.forward",
        (
            "self",
            "logits_output",
            "sampling_info",
            "return_logprob",
            "top_logprobs_nums",
            "token_ids_logprobs",
            "positions",
        ),
        None,
        "samples the target's token at a node exactly as in plain decoding",
        "call",
    ),
    _row(
        f"{_SRT}.layers.sampler.apply_custom_logit_processor",
        ("logits", "sampling_batch_info", "num_tokens_in_batch"),
        f"{_SRT}.layers.sampler.Sampler._preprocess_logits",
        "requests' own logit processors, at the one row that such requests have",
        "call",
    ),
    _row(
        f"{_SRT}.utils.async_probe.sanitize_nan_logits",
        ("logits", "msg"),
        f"{_SRT}.layers.sampler.Sampler._preprocess_logits",
        "logits that are no numbers, as in plain decoding",
        "call",
    ),
    _row(
        f"{_SRT}.sampling.penaltylib.repetition_penalty.apply_scaling_penalties",
        ("logits", "scaling_penalties"),
        f"{_SRT}.sampling.sampling_batch_info.SamplingBatchInfo._apply_pre_grammar_logits_transforms",
        "repetition penalties, as in plain decoding",
        "call",
    ),
    *(
        _row(
            f"{_SRT}.sampling.sampling_batch_info.SamplingBatchInfo.{field}",
            None,
            f"{_SRT}.sampling.sampling_batch_info.SamplingBatchInfo",
            "a request's own value goes to each row of its draft",
            "read",
        )
        for field in (
            "temperatures",
            "top_ps",
            "top_ks",
            "min_ps",
            "sampling_seed",
            "logit_bias",
            "acc_additive_penalties",
            "acc_scaling_penalties",
            "has_custom_logit_processor",
            "is_all_greedy",
        )
    ),
    *(
        _row(f"{_SRT}.managers.schedule_batch.Req.{field}", None, None, reason, "read")
        for field, reason in (
            ("origin_input_ids", "the prompt"),
            ("output_ids", "the reply so far"),
            ("sampling_params", "what limits a request's drafts, and where its hints travel"),
            ("session_id", "whose memory a request may draw on"),
            ("extra_key", "requests with different keys share no memory"),
            ("eos_token_ids", "where a reply ends"),
            ("custom_logit_processor", "such a request is decoded plainly"),
            ("finished_reason", "an aborted reply is not remembered"),
            ("tokenizer", "further ends, and the text that stop strings are looked for in"),
            ("output_ids_through_stop", "a reply is remembered up to its end"),
        )
    ),
    *(
        _row(f"{_SRT}.sampling.sampling_params.SamplingParams.{field}", None, None, reason, "read")
        for field, reason in (
            ("max_new_tokens", "no draft goes beyond it"),
            ("min_new_tokens", "until then a request is decoded plainly"),
            ("frequency_penalty", "such a request is decoded plainly"),
            ("presence_penalty", "as above"),
            ("repetition_penalty", "as above"),
            ("ignore_eos", "where a reply ends"),
            ("stop_token_ids", "as above"),
            ("stop_strs", "as above"),
            ("stop_regex_strs", "as above"),
            ("stop_str_max_len", "how many tokens a stop string may span"),
            ("stop_regex_max_len", "as above"),
            ("custom_params", "carries the hints: session and parent"),
        )
    ),
)
