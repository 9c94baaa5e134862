"""From our options to the front application, which serves the model that both engines speak for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from agentinfer.collab_lang import threshold
from agentinfer.collab_lang.settings import Check, CollabSettings
from agentinfer.collab_lang.virtual_model.addresses import EngineAddress, Role
from agentinfer.collab_lang.virtual_model.front_settings import FrontSettings
from agentinfer.config import AgentInferConfig
from agentinfer.errors import ConfigError


def front_app(
    addresses: Mapping[Role, EngineAddress], config: AgentInferConfig, api_key: str | None
) -> web.Application:
    """`api_key`: what clients must send, None for no key."""
    from agentinfer.collab_lang.virtual_model.app import create_app

    return create_app(addresses, front_settings(config, api_key))


def with_warming_chosen(config: AgentInferConfig, shares_device: bool) -> AgentInferConfig:
    """Reading ahead while the other engine answers slows that answer where both compute on one device."""
    if config.collab.collab_warm_in_turns is not None:
        return config
    return replace(config, collab=replace(config.collab, collab_warm_in_turns=not shares_device))


def front_settings(config: AgentInferConfig, api_key: str | None) -> FrontSettings:
    """Raises ConfigError for options that contradict each other, and for a threshold file that cannot be read."""
    chosen, sessions = config.collab, config.sessions
    least = chosen.collab_threshold
    if chosen.collab_threshold_file is not None:
        fitted = threshold.read(Path(chosen.collab_threshold_file))
        if fitted.check != chosen.collab_check:
            raise ConfigError(
                f"{chosen.collab_threshold_file} was fitted to the check {fitted.check}, which gives other "
                f"probabilities than {chosen.collab_check}. Fit it anew, or give --agentinfer-collab-check "
                f"{fitted.check}"
            )
        least = fitted.value
    controller = CollabSettings(
        warm_up_steps=chosen.collab_warm_up_steps,
        burst_first=chosen.collab_burst_first,
        burst_growth=chosen.collab_burst_growth,
        burst_max=chosen.collab_burst_max,
        threshold=least,
        check=Check(chosen.collab_check),
        max_steps=None,
    )
    return FrontSettings(
        collab=controller,
        name=chosen.collab_model_name,
        warms=chosen.collab_warm,
        warms_in_turns=bool(chosen.collab_warm_in_turns),
        max_sessions=sessions.max_sessions,
        max_session_bytes=max(sessions.session_text_mb, 1) << 20,
        session_expiry_s=sessions.session_expiry_s,
        api_key=api_key,
        checks_model_name=sessions.check_model,
    )
