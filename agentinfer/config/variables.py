"""Environment variables with our prefix that are no option."""

from __future__ import annotations

from collections.abc import Mapping

CONFIG_VARIABLE = "AGENTINFER_CONFIG"
DISABLE_VARIABLE = "AGENTINFER_DISABLE"

# Variables with our prefix that are no option. Any other one is refused, since a typo must not quietly change a run.
OTHER_VARIABLES: Mapping[str, str] = {
    CONFIG_VARIABLE: "set by the launcher for its child processes: the resolved configuration as JSON; do not set it",
    DISABLE_VARIABLE: "features to turn off, separated by commas, or `all`; wins over every other source",
    "AGENTINFER_PROOF_DIR": "set by the launcher for its child processes: where schedulers leave their start-up proof",
    "AGENTINFER_CACHE": "folder of the converted embedded models (default: `$XDG_CACHE_HOME/agentinfer`)",
    "AGENTINFER_CPU_STOCK_ATTENTION": "`1` keeps SGLang's own attention on the engine without a GPU, for comparison",
    "AGENTINFER_CLIENTS_PYTHON": "the Python whose environment holds the client packages that tests use",
    "AGENTINFER_TRACES": "folder of recorded sessions that tests and benchmarks read",
}
