"""What a worker is made of: drafter, width controller and metrics, from the configuration of this process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agentinfer.config import SpeculationConfig
from agentinfer.errors import ConfigError
from agentinfer.metrics import SpeculationMetrics
from agentinfer.runtime.speculation.requests import Drafter
from agentinfer.spec_sam import Speculation, SpeculationSettings
from agentinfer.spec_sam.store import ContextStore, StoreOptions, tokenizer_fingerprint
from agentinfer.spec_sam.store.errors import StoreLockedError
from agentinfer.spec_sam.width import DEFAULT_WIDTHS, WidthController

logger = logging.getLogger(__name__)


def make_drafter(settings: SpeculationConfig, server_args: Any, model_config: Any, is_drafting: bool) -> Drafter:
    """The drafter over the sessions' memory. `model_config`: the engine's, of the target model. Only the rank that is
    drafting has the store. Raises StoreError or ConfigError where the store cannot be used."""
    ends = tuple(sorted(model_config.hf_eos_token_id or ()))
    return Speculation(
        SpeculationSettings(
            stop_tokens=ends,
            chain=settings.spec_shape == "chain",
            session_bytes=settings.spec_session_mb << 20,
            memory_bytes=settings.spec_memory_mb << 20,
        ),
        store=_open_store(settings, server_args) if is_drafting and settings.spec_store is not None else None,
    )


def _open_store(settings: SpeculationConfig, server_args: Any) -> ContextStore:
    """The store for writing, or for reading where another server writes it."""
    assert settings.spec_store is not None
    fingerprint = tokenizer_fingerprint(_tokenizer_folder(server_args))
    options = StoreOptions(max_bytes=settings.spec_store_mb << 20)
    try:
        return ContextStore(settings.spec_store, fingerprint, options=options)
    except StoreLockedError as error:
        logger.info("another server writes the context store, so this one only reads it: %s", error)
        return ContextStore(settings.spec_store, fingerprint, read_only=True, options=options)


def _tokenizer_folder(server_args: Any) -> Path:
    named = Path(server_args.tokenizer_path or server_args.model_path)
    if named.is_dir():
        return named
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(str(named), "tokenizer.json", revision=server_args.revision)
    if not isinstance(cached, str):
        raise ConfigError(
            f"--agentinfer-spec-store needs the tokenizer's files, and {named} is neither a folder nor in the Hugging "
            "Face cache with a tokenizer.json; give a local folder with --tokenizer-path"
        )
    return Path(cached).parent


class Controller(Protocol):
    """`agentinfer.spec_sam.width.WidthController`, as far as it is used here."""

    def should_draft(self, batch_size: int) -> bool: ...

    def observe_draft(self, batch_size: int, seconds: float) -> None: ...

    def choose(self, path_probability: np.ndarray, context_lens: np.ndarray) -> int: ...

    def observe(
        self, batch_size: int, width: int, context_tokens: int, step_seconds: float, tokens_out: int
    ) -> None: ...

    def observe_acceptance(self, path_probability: np.ndarray, accepted: np.ndarray) -> None: ...


class WholeDrafts:
    """The controller that has no opinion: every draft is verified whole. Steps then do not depend on measured times."""

    def __init__(self, max_width: int) -> None:
        self._max_width = max_width

    def should_draft(self, batch_size: int) -> bool:
        return True

    def observe_draft(self, batch_size: int, seconds: float) -> None:
        pass

    def choose(self, path_probability: np.ndarray, context_lens: np.ndarray) -> int:
        return self._max_width

    def observe(self, batch_size: int, width: int, context_tokens: int, step_seconds: float, tokens_out: int) -> None:
        pass

    def observe_acceptance(self, path_probability: np.ndarray, accepted: np.ndarray) -> None:
        pass


def make_controller(settings: SpeculationConfig, max_width: int) -> Controller:
    """The controller of an engine that runs any width up to `max_width`."""
    if not settings.spec_adapt:
        return WholeDrafts(max_width)
    return WidthController([*(width for width in DEFAULT_WIDTHS if width < max_width), max_width])


def make_metrics(server_args: Any) -> SpeculationMetrics | None:
    """Metrics in this process, where SGLang has its own; it has set up the client library for several processes."""
    return SpeculationMetrics() if server_args.enable_metrics else None
