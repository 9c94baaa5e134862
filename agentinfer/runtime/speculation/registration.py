"""AGENT_SAM as one of SGLang's speculative algorithms: registered when switched on, and proved to be what runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

from agentinfer.config import AgentInferConfig, SpeculationConfig
from agentinfer.errors import ConfigError, SeamError
from agentinfer.runtime.named_features import AGENT_SAM
from agentinfer.runtime.speculation.seam_rows import INIT_WORKER

# NGRAM's default, for the same reason: each request holds room for two steps' drafts.
_MAX_RUNNING_REQUESTS = 48


def install(config: AgentInferConfig, hook: Callable[..., None]) -> None:
    """Registers the algorithm in this process, and the check that the scheduler runs it."""
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    @SpeculativeAlgorithm.register(  # type: ignore[untyped-decorator]
        AGENT_SAM, supports_overlap=True, validate_server_args=_validate, spec_class=_algorithm_class()
    )
    def create(server_args: Any) -> type:
        return _worker_class()

    hook(INIT_WORKER, _require_our_worker, "after")


def settings() -> SpeculationConfig:
    """The settings that this process was started with."""
    config = AgentInferConfig.from_env(os.environ)
    assert config is not None, "AGENT_SAM is registered only where a configuration is set"
    return config.speculation


def _require_our_worker(result: None, scheduler: Any) -> None:
    worker = scheduler.draft_worker
    if type(worker) is not _worker_class():
        raise SeamError(
            f"{AGENT_SAM} is on, but the scheduler runs {type(worker).__name__} for algorithm "
            f"{getattr(scheduler.spec_algorithm, 'name', scheduler.spec_algorithm)}. Give no other "
            f"--speculative-algorithm, or serve without it: AGENTINFER_DISABLE={SpeculationConfig.feature}"
        )


def _validate(server_args: Any) -> None:
    """Raises ConfigError for what cannot be combined with AGENT_SAM."""
    conflicts = (
        (server_args.enable_dp_attention, "--enable-dp-attention", "drafts are made by each scheduler for itself"),
        (server_args.pp_size > 1, "--pp-size above 1", "the stages would have to agree on drafts"),
        (
            server_args.device not in ("cuda", "cpu"),
            f"--device {server_args.device}",
            "verification runs on none other",
        ),
    )
    for is_on, what, why in conflicts:
        if is_on:
            raise ConfigError(
                f"--speculative-algorithm {AGENT_SAM} cannot be combined with {what}: {why}. Leave one of them out"
            )


def _complete(server_args: Any) -> None:
    """Fills in SGLang's own speculation arguments. `server_args` records what is assigned."""
    own = settings()
    on_cpu = server_args.device == "cpu"
    if on_cpu:
        server_args.disable_overlap_schedule = True
    if server_args.max_running_requests is None:
        server_args.max_running_requests = _MAX_RUNNING_REQUESTS
    server_args.enable_mixed_chunk = False
    width = server_args.speculative_num_draft_tokens or own.spec_max_width
    server_args.speculative_num_draft_tokens = width
    # Above 1, attention backends expect a tree and its mask. Ours on the CPU reads each step's own shape.
    topk = 2 if own.spec_shape == "tree" and not on_cpu else 1
    server_args.speculative_eagle_topk = topk
    server_args.speculative_num_steps = width // topk
    if topk > 1 and server_args.page_size not in (None, 1) and server_args.attention_backend != "flashinfer":
        raise ConfigError(
            f"draft trees with --page-size {server_args.page_size} need --attention-backend flashinfer, got "
            f"{server_args.attention_backend}. Draft chains (--agentinfer-spec-shape chain) or take page size 1"
        )


@cache
def _worker_class() -> type:
    from agentinfer.runtime.speculation.worker import AgentSamWorker

    return AgentSamWorker


@cache
def _algorithm_class() -> type:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
    from sglang.srt.speculative.spec_registry import CustomSpecAlgo

    class AgentSam(CustomSpecAlgo):  # type: ignore[misc]
        """Drafts come from memory, not from a model: as for NGRAM there is no draft cache and no hidden state."""

        def is_ngram(self) -> bool:
            return True

        def has_draft_kv(self) -> bool:
            return False

        def carries_draft_hidden_states(self) -> bool:
            return False

        def need_topk(self) -> bool:
            return False

        def create_future_map(self, *args: Any, **kwargs: Any) -> Any:
            # Upstream's is a plain function of its `self`, and asks it only what is answered here.
            return SpeculativeAlgorithm.create_future_map(self, *args, **kwargs)

        def handle_server_args(self, server_args: Any) -> None:
            _complete(server_args)

    return AgentSam
