"""Splits the command line and the configuration file into ours and SGLang's, and completes SGLang's part.

SGLang's own parser reads its part later, unchanged. Here a parser of the same options is only asked what the user has
set: nothing of that may be overridden, and an unknown flag is worth a better answer than a page of usage.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from agentinfer.config import (
    DISABLE_VARIABLE,
    AgentInferConfig,
    CollabConfig,
    CompressionConfig,
    ResolvedConfig,
    add_flags,
    all_options,
    is_our_key,
    near,
    resolve_config,
)
from agentinfer.errors import ConfigError
from agentinfer.models import DEFAULT_MODEL, PREFIX
from agentinfer.runtime.named_features import NAMED_FEATURES, scheduling_flags, speculation_flags

USAGE = "python -m agentinfer.launch_server [--model-path PATH] [SGLang's flags] [agentinfer's flags]"

# SGLang's --dtype words for weights of 32 and 16 bits; any other keeps the embedded models' own precision.
_EMBEDDED_DTYPES = {"float": "float32", "float32": "float32", "half": "float16", "float16": "float16"}

_CONFIG_FLAG = "--config"

# Shorter words for switches of ours, on the command line and, without the dashes, in the file.
_ALIASES: Mapping[str, str] = {
    "--enable-compress": CompressionConfig.switch().flag,
    "--small-model-path": CollabConfig.switch().flag,
    "--small-model": CollabConfig.switch().flag,
    "--small-base-url": CollabConfig.switch().flag,
    "--large-base-url": all_options()["collab_large_base_url"].flag,
}


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command line split in two. `engine_argv` names SGLang's file as the user gave it; `engine_file` is its content.

    `file_is_shared` says that the file has keys of ours, which SGLang's parser would refuse.
    """

    resolved: ResolvedConfig
    engine_argv: tuple[str, ...]
    engine_file: Mapping[str, object]
    file_is_shared: bool


class QuietParser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors instead of pages of usage and an exit."""

    def __init__(self) -> None:
        super().__init__(usage=USAGE, add_help=False, allow_abbrev=True, formatter_class=argparse.HelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. All flags: python -m agentinfer.launch_server --help")


def split_command_line(argv: Sequence[str], environ: Mapping[str, str]) -> CommandLine:
    """Takes our flags and file keys out. Raises ConfigError for a value of ours that cannot be taken, or a bad file."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = QuietParser().error  # type: ignore[method-assign]
    add_flags(parser)
    flags, rest = parser.parse_known_args([_unaliased(word) for word in argv])
    rest = list(_with_separate_config_value(rest))
    file_name = _config_file(rest)
    content = {} if file_name is None else _with_whole_keys(_read_yaml(file_name), file_name)
    ours = {key: value for key, value in content.items() if is_our_key(key)}
    theirs = {key: value for key, value in content.items() if not is_our_key(key)}
    named = [each for each in NAMED_FEATURES if each.is_named(rest, theirs)]
    given = {**{each.settings.switch().name: True for each in named}, **vars(flags)}
    resolved = resolve_config(given, environ, ours, file_name or "")
    gone = [each for each in named if each.must_go(resolved)]
    for each in gone:
        rest, theirs = each.without(rest, theirs)
    is_our_file = bool(ours or gone)
    if resolved.sources[CollabConfig.switch().name] == DISABLE_VARIABLE:
        from agentinfer.runtime.collab.role_flags import for_large_alone

        rest, alone = for_large_alone(rest, theirs)
        theirs, is_our_file = alone, is_our_file or alone != theirs
    return CommandLine(resolved, tuple(rest), theirs, file_is_shared=file_name is not None and is_our_file)


def read_config_file(argv: Sequence[str]) -> dict[str, Any]:
    """The content of the file that ``--config`` names, as it stands; empty without one. Raises ConfigError."""
    file_name = _config_file(list(_with_separate_config_value(argv)))
    return {} if file_name is None else _read_yaml(file_name)


def engine_options_given(line: CommandLine, parser: QuietParser) -> dict[str, object]:
    """What the user set of the engine, by destination, from the command line and the file.

    `parser` has the engine's options; this empties their defaults. Raises ConfigError for a flag or key that nobody
    knows.
    """
    known = {name: action for action in parser._actions for name in action.option_strings}
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    # Actions of deprecated flags print a warning. The engine's own parser will, once.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        namespace, unknown = parser.parse_known_args(line.engine_argv)
    names = [*known, *(each.flag for each in all_options().values())]
    for word in unknown:
        flag = word.partition("=")[0]
        if not flag.startswith("-"):
            raise ConfigError(f"unexpected argument {word!r}. Usage: {USAGE}")
        raise ConfigError(
            f"unknown flag {flag}.{near(flag, names)} All flags: python -m agentinfer.launch_server --help"
        )
    given: dict[str, object] = {}
    for key, value in line.engine_file.items():
        flag = f"--{key}"
        if flag not in known:  # with underscores too: the engine's parser would refuse it with a page of usage
            keys = [name.removeprefix("--") for name in names]
            raise ConfigError(f"{_config_file(line.engine_argv)}: unknown key {key}.{near(key, keys)}")
        given[known[flag].dest] = value
    given.update(vars(namespace))
    return given


def completing_flags(
    given: Mapping[str, object], config: AgentInferConfig, resolve: Callable[[str, str], str]
) -> tuple[list[str], list[str]]:
    """Flags to append to the engine's command line, and a line for the operator on each decision that was ours.

    `given` are the engine's options that the user set, by destination; `resolve(path, dtype)` turns an ``embedded:``
    path into a folder and may take seconds. Appended flags win over a file and over earlier ones.
    """
    flags: list[str] = []
    notes: list[str] = []
    model = given.get("model_path")
    if model is None:
        model = PREFIX + DEFAULT_MODEL
        notes.append(f"no --model-path was given: serving the embedded model {DEFAULT_MODEL}")
    dtype = _EMBEDDED_DTYPES.get(str(given.get("dtype")), "bfloat16")
    for destination, path in {**given, "model_path": model}.items():
        if isinstance(path, str) and path.startswith(PREFIX):
            flags += [_flag(destination), resolve(path, dtype)]
    if str(model).startswith(PREFIX):
        name = str(model).removeprefix(PREFIX)
        defaults = {"served_model_name": name, "tool_call_parser": "qwen"}
        chosen = [
            each
            for destination, value in defaults.items()
            if destination not in given
            for each in (_flag(destination), value)
        ]
        flags += chosen
        if chosen:
            notes.append(f"the embedded model {name} comes with {' '.join(chosen)}")
    if config.speculation.enabled:
        flags += speculation_flags(given)
    if config.scheduling.enabled:
        flags += scheduling_flags(given)
    if config.sessions.enabled:
        # Our metrics are on the engine's /metrics route, and sessions report how much of a prompt was cached.
        chosen = [_flag(each) for each in ("enable_metrics", "enable_cache_report") if each not in given]
        flags += chosen
        if chosen:
            notes.append(f"sessions come with {' '.join(chosen)} (neither with --no-agentinfer-sessions)")
    return flags, notes


@contextlib.contextmanager
def engine_command_line(line: CommandLine, extra: Sequence[str]) -> Iterator[list[str]]:
    """The engine's command line, with a copy of the file that lacks our keys where it had some."""
    import tempfile

    import yaml  # type: ignore[import-untyped]

    argv = [*line.engine_argv, *extra]
    if not line.file_is_shared:
        yield argv
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="agentinfer-", encoding="utf-8") as copy:
        yaml.safe_dump(dict(line.engine_file), copy, sort_keys=False)
        copy.flush()
        argv[argv.index(_CONFIG_FLAG) + 1] = copy.name
        yield argv


def _unaliased(word: str) -> str:
    flag, equals, value = word.partition("=")
    return _ALIASES.get(flag, flag) + equals + value


def _flag(destination: str) -> str:
    return "--" + destination.replace("_", "-")


def _with_separate_config_value(argv: Sequence[str]) -> Iterator[str]:
    # SGLang overlooks a file given as --config=FILE: it looks for the bare word only, and then ignores the value.
    for word in argv:
        if word.startswith(_CONFIG_FLAG + "="):
            yield from (_CONFIG_FLAG, word.partition("=")[2])
        else:
            yield word


def _config_file(argv: Sequence[str]) -> str | None:
    if _CONFIG_FLAG not in argv:
        return None
    index = argv.index(_CONFIG_FLAG)
    if argv.count(_CONFIG_FLAG) > 1 or index + 1 == len(argv):
        raise ConfigError(f"{_CONFIG_FLAG}: expected one file, given once")
    return argv[index + 1]


def _with_whole_keys(content: Mapping[str, Any], file_name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        whole = _ALIASES.get("--" + key.replace("_", "-"), "--" + key).removeprefix("--")
        if whole in found or (whole != key and whole in content):
            raise ConfigError(f"{file_name}: {key} is another word for {whole}, which is there too: leave one out")
        found[whole] = value
    return found


def _read_yaml(file_name: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    if Path(file_name).suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"{_CONFIG_FLAG} {file_name}: expected a file that ends in .yaml or .yml")
    try:
        content = yaml.safe_load(Path(file_name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{_CONFIG_FLAG} {file_name}: cannot be read: {error}") from None
    if not (content is None or isinstance(content, dict)):
        raise ConfigError(f"{_CONFIG_FLAG} {file_name}: expected keys and values, got {type(content).__name__}")
    return {str(key): value for key, value in (content or {}).items()}
