"""From the user's command line to the two engines' command lines, the public address, and the engines elsewhere.

Pure: no file is read or written and no port is tried. `tests/unit/test_collab_command_lines.py` has the rules as
tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Final

from agentinfer.collab_lang.virtual_model.addresses import Role
from agentinfer.config import CollabConfig, ResolvedConfig, all_options
from agentinfer.errors import ConfigError
from agentinfer.models import DEFAULT_MODEL, PREFIX
from agentinfer.runtime.collab.contradictions import (
    BASE_URL,
    refuse_flags_for_elsewhere,
    refuse_flags_for_nobody,
    refuse_what_two_cannot_share,
    without_collab,
)
from agentinfer.runtime.collab.role_flags import ROLES, Part, Parts, split_roles

ENGINE_HOST: Final = "127.0.0.1"
_DEFAULT_HOST, _DEFAULT_PORT = "127.0.0.1", 30_000  # SGLang's

# Options of ours that name a file or a folder that the server writes: two servers must not write the same one.
WRITTEN_FILES: Final = ("record", "spec_store", "sched_latency_file", "compress_store")
_READING_AHEAD = all_options()["prefill_route"]


@dataclass(frozen=True, slots=True)
class Door:
    """Where clients knock. `api_key`: what they must show, None for nothing."""

    host: str = _DEFAULT_HOST
    port: int = _DEFAULT_PORT
    api_key: str | None = None
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None


@dataclass(frozen=True, slots=True)
class EngineLine:
    """An engine to start here: ``python -m agentinfer.launch_server`` with `argv`, and `file` as its ``--config``.

    The rest is what the memory is split by, as the user gave it; None where nothing was. `num_shards`: GPUs that one
    copy of the weights lies on.
    """

    role: Role
    model_path: str
    model: str
    port: int
    api_key: str | None
    argv: tuple[str, ...]
    file: Mapping[str, object] = field(default_factory=dict)
    fraction: float | None = None
    num_gpus: int = 1
    num_shards: int = 1
    base_gpu_id: int | None = None
    gpu_id_step: int = 1
    device: str | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    chunked_prefill_tokens: int | None = None

    @property
    def base_url(self) -> str:
        return f"http://{ENGINE_HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """An engine that somebody else runs. `model` None: the first that it says it serves."""

    role: Role
    base_url: str
    model: str | None
    api_key: str | None


@dataclass(frozen=True, slots=True)
class CommandLines:
    """`shared_fraction`: a --mem-fraction-static without a role, which is what both engines may take together."""

    door: Door
    engines: Mapping[Role, EngineLine | Elsewhere]
    shared_fraction: float | None = None

    @property
    def started_here(self) -> tuple[EngineLine, ...]:
        return tuple(each for role in ROLES if isinstance(each := self.engines[role], EngineLine))


def command_lines(
    argv: Sequence[str], file: Mapping[str, object], resolved: ResolvedConfig, free_port: Callable[[], int]
) -> CommandLines:
    """`argv` is the user's, `file` the content of its ``--config``, `resolved` our options from all sources.

    Raises ConfigError for what contradicts itself or would leave the engines in each other's way.
    """
    parts = split_roles(argv, file)
    refuse_what_two_cannot_share(parts)
    urls = _base_urls(parts, resolved.config.collab)
    if len(urls) == len(ROLES):
        refuse_flags_for_nobody(parts)
    names = _names(parts, resolved.config.collab, urls)
    engines: dict[Role, EngineLine | Elsewhere] = {}
    for role in ROLES:
        if role in urls:
            refuse_flags_for_elsewhere(role, parts)
            key = parts.own[role].flag_value("--api-key") or parts.own[role].key_value("--api-key")
            engines[role] = Elsewhere(role, urls[role], names[role], key)
        else:
            files = _own_files(role, parts, resolved) if not urls else {}
            line = _engine(role, parts, resolved.config.collab, str(names[role]), free_port(), files)
            engines[role] = replace(line, argv=(*line.argv, *_for_reading_ahead(resolved)))
    _refuse_one_file_twice(engines)
    return CommandLines(_door(parts), engines, _fraction(parts.shared, "--mem-fraction-static"))


def suffixed(path: str, role: Role) -> str:
    """``turns.jsonl`` -> ``turns-large.jsonl``; ``store`` -> ``store-large``."""
    plain = PurePath(path)
    return str(plain.with_name(f"{plain.stem}-{role}{plain.suffix}"))


def _engine(
    role: Role, parts: Parts, config: CollabConfig, name: str, port: int, files: Mapping[str, str]
) -> EngineLine:
    # The fraction is the split's to give (`agentinfer.runtime.collab.memory`).
    taken = {"--served-model-name", "--config", "--mem-fraction-static", BASE_URL, *files}
    if role == "small":
        taken.add("--model-path")
    part = without_collab(parts.of(role).without(taken))
    words = [word for flag in part.flags for word in flag.words]
    path = _model_path(role, parts, config)
    if role == "small":
        words += ["--model-path", path]
    words += ["--served-model-name", name, "--host", ENGINE_HOST, "--port", str(port)]
    for flag, value in files.items():
        words += [flag, value]

    def number(flag: str, default: int) -> int:
        return _integer(parts.value(role, flag), flag, default)

    num_shards = number("--tp-size", 1) * number("--pp-size", 1)
    chunk_tokens = number("--chunked-prefill-size", 0)
    data_parallel = 1 if parts.value(role, "--enable-dp-attention") == "true" else number("--dp-size", 1)
    base = parts.value(role, "--base-gpu-id")
    return EngineLine(
        role=role,
        model_path=path,
        model=name,
        port=port,
        api_key=parts.value(role, "--api-key"),
        argv=tuple(words),
        file=part.keys,
        fraction=_fraction(parts.own[role], "--mem-fraction-static"),
        num_gpus=num_shards * data_parallel,
        num_shards=num_shards,
        base_gpu_id=None if base is None else _integer(base, "--base-gpu-id", 0),
        gpu_id_step=number("--gpu-id-step", 1),
        device=parts.value(role, "--device"),
        dtype=parts.value(role, "--dtype"),
        kv_cache_dtype=parts.value(role, "--kv-cache-dtype"),
        chunked_prefill_tokens=chunk_tokens if chunk_tokens > 0 else None,
    )


def _for_reading_ahead(resolved: ResolvedConfig) -> list[str]:
    """What an engine needs so that the silent model can read ahead, unless the user said something about it."""
    is_wanted = resolved.config.collab.collab_warm and resolved.config.sessions.enabled
    return [_READING_AHEAD.flag] if is_wanted and resolved.sources[_READING_AHEAD.name] == "default" else []


def _base_urls(parts: Parts, config: CollabConfig) -> dict[Role, str]:
    """By role, where an engine elsewhere is. Raises ConfigError where a role has both an address and a model here."""
    urls: dict[Role, str] = {}
    small = str(config.collab)
    if small.startswith(("http://", "https://")):
        urls["small"] = _plain_url(small)
    elif parts.own["small"].flag_value(BASE_URL) is not None:
        raise ConfigError(f"--small-base-url {small}: expected a URL that begins with http:// or https://")
    if config.collab_large_base_url is not None:
        if not config.collab_large_base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"--large-base-url {config.collab_large_base_url}: expected a URL that begins with http:// or https://"
            )
        urls["large"] = _plain_url(config.collab_large_base_url)
    for role in ROLES:
        model = parts.own[role].flag_value("--model-path") or parts.own[role].key_value("--model-path")
        url = urls.get(role)
        given = parts.own[role].flag_value(BASE_URL)
        is_both = model is not None and (given is not None or (role == "large" and url is not None))
        if is_both:
            raise ConfigError(
                f"the {role} model was given twice, here ({model}) and elsewhere ({url or given}): leave one out"
            )
    return urls


def _plain_url(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _model_path(role: Role, parts: Parts, config: CollabConfig) -> str:
    if role == "small":
        return str(config.collab)
    return parts.value("large", "--model-path") or PREFIX + DEFAULT_MODEL


def _names(parts: Parts, config: CollabConfig, urls: Mapping[Role, str]) -> dict[Role, str | None]:
    """The names of the models: given ones, else those that SGLang would give them, made different."""
    names: dict[Role, str | None] = {}
    given = {role: parts.value(role, "--served-model-name") for role in ROLES}
    for role in ROLES:
        stock = None if role in urls else _model_path(role, parts, config).removeprefix(PREFIX)
        names[role] = given[role] or stock
    if names["large"] == names["small"] is not None:
        if all(given.values()):
            raise ConfigError(f"both models were given the name {names['large']}: clients could not tell them apart")
        names = {role: name if given[role] else f"{name}-{role}" for role, name in names.items()}
    for role, name in names.items():
        if name == config.collab_model_name:
            raise ConfigError(
                f"the {role} model's name is {name}, as is that of the model that both speak for: give another one "
                f"(--{role}-served-model-name or {all_options()['collab_model_name'].flag})"
            )
    return names


def _own_files(role: Role, parts: Parts, resolved: ResolvedConfig) -> dict[str, str]:
    """Flag -> file for each file that `role` would otherwise write together with the other engine."""
    files: dict[str, str] = {}
    for name in WRITTEN_FILES:
        option = all_options()[name]
        own = parts.own[role]
        if own.flag_value(option.flag) is not None:
            continue
        is_from_file = resolved.sources[name] == "default" or resolved.sources[name].startswith(option.key)
        if is_from_file and option.key in {key.replace("_", "-") for key in own.keys}:
            continue
        value = next(
            getattr(feature, name) for feature in resolved.config.features() if option in type(feature).options()
        )
        if value is not None:
            files[option.flag] = suffixed(str(value), role)
    return files


def _door(parts: Parts) -> Door:
    def text(name: str) -> str | None:
        return parts.door_value(name)

    shared_key = parts.shared.flag_value("--api-key") or parts.shared.key_value("--api-key")
    for flag in ("--ssl-ca-certs", "--enable-ssl-refresh"):
        if text(flag) is not None:
            raise ConfigError(f"{flag} has no effect in front of two engines: put a TLS proxy before the server")
    if (text("--ssl-keyfile") is None) != (text("--ssl-certfile") is None):
        raise ConfigError("--ssl-keyfile and --ssl-certfile: one was given without the other")
    return Door(
        host=text("--host") or _DEFAULT_HOST,
        port=_integer(text("--port"), "--port", _DEFAULT_PORT),
        api_key=shared_key,
        ssl_keyfile=text("--ssl-keyfile"),
        ssl_certfile=text("--ssl-certfile"),
        ssl_keyfile_password=text("--ssl-keyfile-password"),
    )


def _refuse_one_file_twice(engines: Mapping[Role, EngineLine | Elsewhere]) -> None:
    lines = [each for each in engines.values() if isinstance(each, EngineLine)]
    for name in WRITTEN_FILES if len(lines) > 1 else ():
        option = all_options()[name]
        parts = [split_roles(line.argv, line.file).shared for line in lines]
        values = [part.flag_value(option.flag) or part.key_value(option.flag) for part in parts]
        if values[0] is not None and values[0] == values[1]:
            raise ConfigError(f"{option.flag}: both engines were given {values[0]}, and only one server can write it")


def _fraction(part: Part, name: str) -> float | None:
    text = part.flag_value(name) or part.key_value(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name}: got {text!r}, expected a number between 0 and 1")
    return value


def _integer(text: str | None, name: str, default: int) -> int:
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}: got {text!r}, expected an integer") from None
