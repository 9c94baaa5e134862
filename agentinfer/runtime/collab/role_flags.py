"""Which words of a command line, and which keys of its file, are for both engines, for one of them, or for neither.

``--large-X`` and ``--small-X`` give SGLang's flag ``--X``, or one of ours, to one engine; any other flag is for both.
Those in `OF_THE_WEIGHTS` say what the large model's weights are, and those in `OF_THE_DOOR` where clients knock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from agentinfer.collab_lang.virtual_model.addresses import Role
from agentinfer.config import is_our_key
from agentinfer.errors import ConfigError

ROLES: Final[tuple[Role, ...]] = ("large", "small")

# SGLang's spellings of the flags that are read here, by the first of them, each with the shortest abbreviation that its
# parser takes.
SPELLINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "--model-path": {"--model-path": "--model-p", "--model": "--model"},
    "--served-model-name": {"--served-model-name": "--se"},
    "--revision": {"--revision": "--rev"},
    "--tokenizer-path": {"--tokenizer-path": "--tokenizer-p"},
    "--speculative-draft-model-path": {
        "--speculative-draft-model-path": "--speculative-draft-model-p",
        "--speculative-draft-model": "--speculative-draft-model",
    },
    "--speculative-draft-model-revision": {"--speculative-draft-model-revision": "--speculative-draft-model-r"},
    "--lora-paths": {"--lora-paths": "--lora-p"},
    "--host": {"--host": "--ho"},
    "--port": {"--port": "--po"},
    "--api-key": {"--api-key": "--ap"},
    "--ssl-keyfile": {"--ssl-keyfile": "--ssl-keyfile"},
    "--ssl-certfile": {"--ssl-certfile": "--ssl-ce"},
    "--ssl-keyfile-password": {"--ssl-keyfile-password": "--ssl-keyfile-"},
    "--ssl-ca-certs": {"--ssl-ca-certs": "--ssl-ca"},
    "--enable-ssl-refresh": {"--enable-ssl-refresh": "--enable-ss"},
    "--mem-fraction-static": {"--mem-fraction-static": "--mem"},
    "--tp-size": {"--tp-size": "--tp", "--tensor-parallel-size": "--te"},
    "--pp-size": {"--pp-size": "--pp-s", "--pipeline-parallel-size": "--pi"},
    "--dp-size": {"--dp-size": "--dp", "--data-parallel-size": "--da"},
    "--enable-dp-attention": {"--enable-dp-attention": "--enable-dp-attention"},
    "--base-gpu-id": {"--base-gpu-id": "--bas"},
    "--gpu-id-step": {"--gpu-id-step": "--gp"},
    "--device": {"--device": "--dev"},
    "--dtype": {"--dtype": "--dt"},
    "--kv-cache-dtype": {"--kv-cache-dtype": "--kv-cac"},
    "--chunked-prefill-size": {"--chunked-prefill-size": "--chu"},
    "--nnodes": {"--nnodes": "--nn"},
    "--dist-init-addr": {"--dist-init-addr": "--dist-i", "--nccl-init-addr": "--nccl-i"},
    "--nccl-port": {"--nccl-port": "--nccl-p"},
    "--grpc-mode": {"--grpc-mode": "--grpc-m"},
    "--smg-grpc-mode": {"--smg-grpc-mode": "--smg-g"},
    "--encoder-only": {"--encoder-only": "--encoder-o"},
    "--use-ray": {"--use-ray": "--us"},
    "--config": {"--config": "--config"},
}

# Given without a role, these are the large model's: they would not fit the other one.
OF_THE_WEIGHTS: Final = frozenset(
    {
        "--model-path",
        "--served-model-name",
        "--revision",
        "--tokenizer-path",
        "--speculative-draft-model-path",
        "--speculative-draft-model-revision",
        "--lora-paths",
    }
)
OF_THE_DOOR: Final = frozenset(
    {
        "--host",
        "--port",
        "--ssl-keyfile",
        "--ssl-certfile",
        "--ssl-keyfile-password",
        "--ssl-ca-certs",
        "--enable-ssl-refresh",
    }
)

_T = TypeVar("_T")
_NUMBER = re.compile(r"^-\d+$|^-\d*\.\d+$")  # argparse's own test


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag as typed, without `--large-` or `--small-`. `name` is its first spelling where it is one that we read."""

    name: str
    words: tuple[str, ...]

    @property
    def value(self) -> str:
        """The last of its values, "true" for a switch."""
        _, has_value, value = self.words[0].partition("=")
        return value if has_value else self.words[-1] if len(self.words) > 1 else "true"


@dataclass(frozen=True, slots=True)
class Part:
    """What one engine, both, or the door is given: flags in order, and keys of the file. A flag wins over a key."""

    flags: tuple[Flag, ...] = ()
    keys: Mapping[str, object] = field(default_factory=dict)

    def flag_value(self, name: str) -> str | None:
        """The last one counts, as with argparse."""
        return next((flag.value for flag in reversed(self.flags) if flag.name == name), None)

    def key_value(self, name: str) -> str | None:
        found = [value for key, value in self.keys.items() if canonical(f"--{key}") == name and value is not None]
        return None if not found else str(found[-1]).lower() if isinstance(found[-1], bool) else str(found[-1])

    def without(self, names: Iterable[str]) -> Part:
        gone = frozenset(names)
        return Part(
            tuple(flag for flag in self.flags if flag.name not in gone),
            {key: value for key, value in self.keys.items() if canonical(f"--{key}") not in gone},
        )


@dataclass(frozen=True, slots=True)
class Parts:
    door: Part
    shared: Part
    own: Mapping[Role, Part]

    def value(self, role: Role, name: str) -> str | None:
        """What `role` is given under `name`: its own before the shared one, flags before the file."""
        own = self.own[role]
        for found in (own.flag_value(name), self.shared.flag_value(name), own.key_value(name)):
            if found is not None:
                return found
        return self.shared.key_value(name)

    def door_value(self, name: str) -> str | None:
        found = self.door.flag_value(name)
        return self.door.key_value(name) if found is None else found

    def of(self, role: Role) -> Part:
        """All that `role` is given. A shared flag that its own one replaces is left out."""
        own = self.own[role]
        replaced = {flag.name for flag in own.flags}
        keys = {key: value for key, value in self.shared.keys.items() if key not in own.keys}
        return Part((*self.shared.without(replaced).flags, *own.flags), {**keys, **own.keys})


def canonical(name: str) -> str:
    """The first spelling of a flag in `SPELLINGS`; any other name as it is."""
    for first, spellings in SPELLINGS.items():
        if name in spellings:
            return first
    for first, spellings in SPELLINGS.items():
        if any(name.startswith(shortest) and full.startswith(name) for full, shortest in spellings.items()):
            return first
    return name


def split_roles(argv: Sequence[str], file: Mapping[str, object]) -> Parts:
    """Splits both by role. Raises ConfigError for a word that belongs to no flag and for a door in an engine's name."""
    door: list[Flag] = []
    shared: list[Flag] = []
    own: dict[Role, list[Flag]] = {"large": [], "small": []}
    for words in _grouped(argv):
        typed, equals, value = words[0].partition("=")
        role, plain = _without_role(typed)
        flag = Flag(canonical(plain), (plain + equals + value, *words[1:]))
        _refuse_engines_door(role, flag.name, typed)
        _placed(role, flag.name, door, shared, own).append(flag)
    door_keys: dict[str, object] = {}
    shared_keys: dict[str, object] = {}
    own_keys: dict[Role, dict[str, object]] = {"large": {}, "small": {}}
    for key, content in file.items():
        role, plain = _without_role(f"--{key}")
        name = canonical(plain)
        _refuse_engines_door(role, name, key)
        _placed(role, name, door_keys, shared_keys, own_keys)[plain.removeprefix("--")] = content
    return Parts(
        Part(tuple(door), door_keys),
        Part(tuple(shared), shared_keys),
        {role: Part(tuple(own[role]), own_keys[role]) for role in ROLES},
    )


def for_large_alone(argv: Sequence[str], file: Mapping[str, object]) -> tuple[list[str], dict[str, object]]:
    """The command line and the file of one ordinary server with the large model: nothing of the small one's is left."""
    words: list[str] = []
    for group in _grouped(argv, is_strict=False):
        role, plain = _without_role(group[0])
        if role != "small":
            words += [plain, *group[1:]]
    keys = {_without_role(f"--{key}"): value for key, value in file.items()}
    return words, {plain.removeprefix("--"): value for (role, plain), value in keys.items() if role != "small"}


def _placed(role: Role | None, name: str, door: _T, shared: _T, own: Mapping[Role, _T]) -> _T:
    if role is not None:
        return own[role]
    return door if name in OF_THE_DOOR else own["large"] if name in OF_THE_WEIGHTS else shared


def _refuse_engines_door(role: Role | None, name: str, typed: str) -> None:
    if role is not None and name in OF_THE_DOOR:
        raise ConfigError(
            f"{typed}: the engines listen on this machine alone, where the supervisor chooses. The address for clients "
            f"is {name}, without a role"
        )


def _without_role(name: str) -> tuple[Role | None, str]:
    for role in ROLES:
        if name.startswith((f"--{role}-", f"--{role}_")):
            return role, "--" + name[len(f"--{role}-") :].replace("_", "-")
    # File keys of ours may have underscores; SGLang's may not.
    return None, name.replace("_", "-") if is_our_key(name.removeprefix("--")) else name


def _grouped(argv: Sequence[str], is_strict: bool = True) -> list[list[str]]:
    groups: list[list[str]] = []
    for word in argv:
        if _is_flag(word):
            groups.append([word])
        elif groups:
            groups[-1].append(word)
        elif is_strict:
            raise ConfigError(f"unexpected argument {word!r} before the first flag")
        else:
            groups.append([word])
    return groups


def _is_flag(word: str) -> bool:
    name = word.partition("=")[0]
    return len(word) > 1 and name.startswith("-") and not _NUMBER.match(word) and " " not in name
