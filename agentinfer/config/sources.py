"""How flags, environment and configuration file become one configuration.

Precedence: flag, then ``AGENTINFER_<OPTION>``, then configuration file, then default. ``AGENTINFER_DISABLE`` comes
above all of them: it is what an operator reaches for when a feature is in the way.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from agentinfer.config.configuration import FEATURES, AgentInferConfig
from agentinfer.config.options import KEY_PREFIX, VARIABLE_PREFIX, Option
from agentinfer.config.variables import DISABLE_VARIABLE, OTHER_VARIABLES
from agentinfer.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """A configuration and, by option name, where each value came from ("default" where nobody set it)."""

    config: AgentInferConfig
    sources: Mapping[str, str]


def all_options() -> dict[str, Option]:
    return {each.name: each for feature in FEATURES.values() for each in feature.options()}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a group a feature. Values stay text and absent flags stay absent: `resolve_config` reads and checks them."""
    for feature in FEATURES.values():
        group = parser.add_argument_group(f"agentinfer: {feature.feature}", feature.summary)
        for each in feature.options():
            text = f"{each.help} (default: {each.default}; {each.expected}; or {each.variable})".replace("%", "%%")
            if each.kind is bool:
                action = argparse.BooleanOptionalAction
                group.add_argument(each.flag, dest=each.name, action=action, default=argparse.SUPPRESS, help=text)
            else:
                metavar = each.metavar or ("N" if each.kind is int else "X" if each.kind is float else "TEXT")
                group.add_argument(each.flag, dest=each.name, metavar=metavar, default=argparse.SUPPRESS, help=text)


def resolve_config(
    flags: Mapping[str, object], environ: Mapping[str, str], file: Mapping[str, object], file_name: str = "file"
) -> ResolvedConfig:
    """One configuration from all sources; `flags` by option name, `file` by our keys (``agentinfer-max-sessions``).

    An empty variable counts as unset. Raises ConfigError naming the source of a value that cannot be taken.
    """
    options = all_options()
    from_file = {_file_option(key, options, file_name).name: value for key, value in file.items()}
    _refuse_unknown_variables(environ, options)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, each in options.items():
        raw: object
        if name in flags:
            raw, source = flags[name], each.flag
        elif environ.get(each.variable):
            raw, source = environ[each.variable], each.variable
        elif name in from_file:
            raw, source = from_file[name], f"{each.key} in {file_name}"
        else:
            raw, source = each.default, "default"
        values[name], sources[name] = each.read(raw, where=source), source
    features: dict[str, Any] = {}
    turned_off = _disabled_features(environ)
    for name, kind in FEATURES.items():
        settings = kind(**{each.name: values[each.name] for each in kind.options()})
        if name in turned_off:
            settings = settings.disabled()
            sources[kind.switch().name] = DISABLE_VARIABLE
        features[name] = settings
    return ResolvedConfig(AgentInferConfig(**features), sources)


def near(name: str, known: Iterable[str]) -> str:
    """`` Did you mean X or Y?``, or nothing where no known name is near."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.7)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def _file_option(key: str, options: Mapping[str, Option], file_name: str) -> Option:
    by_key = {each.key: each for each in options.values()}
    found = by_key.get(key.replace("_", "-"))
    if found is None:
        raise ConfigError(f"{file_name}: unknown key {key}.{near(key, by_key)} Known: {', '.join(by_key)}")
    return found


def _refuse_unknown_variables(environ: Mapping[str, str], options: Mapping[str, Option]) -> None:
    known = {each.variable for each in options.values()} | set(OTHER_VARIABLES)
    for name in sorted(environ):
        if name.startswith(VARIABLE_PREFIX) and name not in known:
            raise ConfigError(
                f"unknown environment variable {name}.{near(name, known)} Known: {', '.join(sorted(known))}"
            )


def _disabled_features(environ: Mapping[str, str]) -> frozenset[str]:
    names = {each.strip() for each in environ.get(DISABLE_VARIABLE, "").split(",") if each.strip()}
    unknown = sorted(names - set(FEATURES) - {"all"})
    if unknown:
        raise ConfigError(
            f"{DISABLE_VARIABLE}: unknown feature {unknown[0]!r}.{near(unknown[0], FEATURES)} "
            f"Known: {', '.join(FEATURES)}, all"
        )
    return frozenset(FEATURES) if "all" in names else frozenset(names)


def is_our_key(key: str) -> bool:
    """Whether a configuration-file key is ours to read rather than SGLang's."""
    return key.replace("_", "-").startswith(KEY_PREFIX)
