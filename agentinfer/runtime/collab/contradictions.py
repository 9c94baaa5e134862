"""Refuses a command line for two engines that contradicts itself, or would leave them in each other's way."""

from __future__ import annotations

from typing import Final

from agentinfer.collab_lang.virtual_model.addresses import Role
from agentinfer.config import CollabConfig, SessionsConfig
from agentinfer.errors import ConfigError
from agentinfer.runtime.collab.role_flags import ROLES, Part, Parts, canonical

BASE_URL: Final = "--base-url"
_COLLAB_FLAGS = tuple(option.flag for option in CollabConfig.options())
_COLLAB_SWITCHES_OFF = tuple(flag.replace("--", "--no-", 1) for flag in _COLLAB_FLAGS)
_COLLAB_KEYS = tuple(option.key for option in CollabConfig.options())
# What an engine elsewhere may be given: how it is spoken to.
_OF_ELSEWHERE = frozenset({"--served-model-name", "--api-key", BASE_URL})
# One address that two servers cannot both have.
_ONE_ENGINE_ONLY = ("--nccl-port", "--dist-init-addr")
_WITHOUT_HTTP = ("--grpc-mode", "--smg-grpc-mode", "--encoder-only", "--use-ray")


def without_collab(part: Part) -> Part:
    return Part(
        tuple(flag for flag in part.flags if flag.name not in (*_COLLAB_FLAGS, *_COLLAB_SWITCHES_OFF)),
        {key: value for key, value in part.keys.items() if key.replace("_", "-") not in _COLLAB_KEYS},
    )


def refuse_what_two_cannot_share(parts: Parts) -> None:
    small = [flag.name for flag in parts.own["small"].flags if flag.name in ("--model-path", BASE_URL)]
    if len(set(small)) > 1:
        raise ConfigError("--small-model-path and --small-base-url were both given: leave one out")
    for name in _ONE_ENGINE_ONLY:
        if parts.shared.flag_value(name) or parts.shared.key_value(name):
            raise ConfigError(
                f"{name} is one address, and two engines are started: give --large-{name[2:]} and --small-{name[2:]}"
            )
    for role in ROLES:
        if parts.own[role].flag_value("--config") is not None:
            raise ConfigError(
                f"--{role}-config: there is one file, --config, in which {role}-KEY is this engine's alone"
            )
    for name in _WITHOUT_HTTP:
        if any(parts.value(role, name) == "true" for role in ROLES):
            raise ConfigError(f"{name}: the model that both speak for needs engines with the OpenAI API over HTTP")


def refuse_flags_for_elsewhere(role: Role, parts: Parts) -> None:
    names = [flag.name for flag in parts.own[role].flags] + [canonical(f"--{key}") for key in parts.own[role].keys]
    for name in names:
        if name not in _OF_ELSEWHERE and (role, name) != ("small", "--model-path"):  # a URL was given as its path
            raise ConfigError(
                f"--{role}-{name[2:]} was given, but the {role} engine is elsewhere (--{role}-base-url) and is not "
                f"started here: give it to the server there"
            )


def refuse_flags_for_nobody(parts: Parts) -> None:
    shared = without_collab(parts.shared).without({"--api-key", "--config"})
    names = [flag.name for flag in shared.flags] + [f"--{key}" for key in shared.keys]
    of_front = {option.flag for option in SessionsConfig.options()}
    for name in names:
        if name.replace("_", "-").replace("--no-", "--", 1) not in of_front:
            raise ConfigError(
                f"{name} was given, but both engines are elsewhere and none is started here: give it to "
                f"the servers there"
            )
