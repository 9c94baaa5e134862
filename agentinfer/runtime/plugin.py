"""The plugin that SGLang loads in each of its processes: registers the hooks of what is switched on, else nothing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

from agentinfer.config import AgentInferConfig
from agentinfer.runtime.seams import hook, ledger

# By feature, the modules whose `install(config, hook)` registers its hooks; the others live in the HTTP layer.
_INSTALLERS = {
    "sessions": ("agentinfer.runtime.requests",),
    "forced_replay": ("agentinfer.runtime.forced",),
    "speculation": ("agentinfer.runtime.speculation.registration",),
    "scheduling": ("agentinfer.runtime.scheduling.registration",),
    "compress": ("agentinfer.runtime.prefill.engine",),
    "prefill_route": ("agentinfer.runtime.prefill.engine",),
}


def register() -> None:
    """Entry point of group ``sglang.srt.plugins``; also runs under stock launchers, where no configuration is set.

    SGLang logs and swallows what is raised here, so each failure is noted for `proof`, which stops the server.
    """
    ledger().plugin_ran = True
    failed = [_failure(_install_cpu_engine)]
    config: AgentInferConfig | None = None

    def read_config() -> None:
        nonlocal config
        config = AgentInferConfig.from_env(os.environ)

    failed.append(_failure(read_config))
    if config is not None and config.enabled_features:
        modules = ["agentinfer.runtime.lifecycle"]
        modules += [name for feature in config.enabled_features for name in _INSTALLERS.get(feature, ())]
        # Once each, since features share some.
        failed += [_failure(_install, name, config) for name in dict.fromkeys(modules)]
    errors = [error for error in failed if error is not None]
    if errors:
        raise errors[0]


def _install_cpu_engine() -> None:
    importlib.import_module("agentinfer.runtime.cpu.hooks").install_if_active()


def _install(module_name: str, config: AgentInferConfig) -> None:
    importlib.import_module(module_name).install(config, hook)


def _failure(step: Callable[..., None], *args: object) -> Exception | None:
    """Runs `step`; what it raised is noted in the ledger and returned, so that the other steps still run."""
    try:
        step(*args)
    except Exception as error:
        what = args[0] if args else step.__name__.strip("_")
        ledger().failures.append(f"{what}: {type(error).__name__}: {error}")
        return error
    return None
