"""What can be set, from which source, and what it comes to."""

from agentinfer.config.configuration import FEATURES, AgentInferConfig
from agentinfer.config.features import (
    CollabConfig,
    CompressionConfig,
    ForcedReplayConfig,
    PrefillConfig,
    RecordConfig,
    SchedulingConfig,
    SessionsConfig,
    SpeculationConfig,
)
from agentinfer.config.sources import ResolvedConfig, add_flags, all_options, is_our_key, near, resolve_config
from agentinfer.config.variables import CONFIG_VARIABLE, DISABLE_VARIABLE, OTHER_VARIABLES

__all__ = [
    "CONFIG_VARIABLE",
    "DISABLE_VARIABLE",
    "FEATURES",
    "OTHER_VARIABLES",
    "AgentInferConfig",
    "CollabConfig",
    "CompressionConfig",
    "ForcedReplayConfig",
    "PrefillConfig",
    "RecordConfig",
    "ResolvedConfig",
    "SchedulingConfig",
    "SessionsConfig",
    "SpeculationConfig",
    "add_flags",
    "all_options",
    "is_our_key",
    "near",
    "resolve_config",
]
