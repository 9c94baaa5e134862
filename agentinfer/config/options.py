"""One option: default, range and help in one place, and the one function that reads a value from any source.

A feature is a frozen dataclass of options. Command line flags, environment variables, configuration-file keys and the
documentation are derived from it, so none of them can say something else than the others.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, ClassVar

from agentinfer.errors import ConfigError

FLAG_PREFIX = "--agentinfer-"
KEY_PREFIX = "agentinfer-"
VARIABLE_PREFIX = "AGENTINFER_"

_TRUE_WORDS = ("1", "true", "yes", "on")
_FALSE_WORDS = ("0", "false", "no", "off")
_METADATA_KEY = "agentinfer.option"


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One setting of a feature. `kind` is the value's type; `optional` says whether None (unset) is a value."""

    name: str
    kind: type
    optional: bool
    default: Any
    help: str
    low: int | float | None
    high: int | float | None
    choices: tuple[str, ...] | None
    metavar: str | None

    @property
    def flag(self) -> str:
        return FLAG_PREFIX + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + self.name.upper()

    @property
    def key(self) -> str:
        return KEY_PREFIX + self.name.replace("_", "-")

    @property
    def expected(self) -> str:
        """What the option takes, in words, for help and for errors."""
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "a non-empty text"
        noun = "an integer" if self.kind is int else "a number"
        if self.low is not None and self.high is not None:
            return f"{noun} from {self.low:,} to {self.high:,}"
        if self.low is not None:
            return f"{noun} of at least {self.low:,}"
        if self.high is not None:
            return f"{noun} of at most {self.high:,}"
        return noun

    def read(self, raw: object, where: str) -> Any:
        """`raw` (text from a flag or variable, or a YAML/JSON value) as this option's type.

        `where` names the source, e.g. ``AGENTINFER_MAX_SESSIONS``. Raises ConfigError naming source, value and range.
        """
        if raw is None and self.optional:
            return None
        value = _converted(self.kind, raw)
        if value is None or not self._is_allowed(value):
            raise ConfigError(f"{where}: got {raw!r}, expected {self.expected} (default: {self.default})")
        return value

    def _is_allowed(self, value: Any) -> bool:
        if self.choices is not None:
            return value in self.choices
        if self.kind is str:
            return bool(value)
        if self.kind is bool:
            return True
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def option(
    default: Any,
    help: str,
    *,
    low: int | float | None = None,
    high: int | float | None = None,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is an option; `low` and `high` are inclusive."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "metavar": metavar}
    return dataclasses.field(default=default, metadata={_METADATA_KEY: metadata})


@dataclasses.dataclass(frozen=True, slots=True)
class Feature:
    """Base of every feature's settings. A subclass's first option is its switch: falsy means the feature is absent.

    Raises ConfigError when constructed with a value outside its option's range.
    """

    feature: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str]

    def __post_init__(self) -> None:
        for each in self.options():
            value = each.read(getattr(self, each.name), where=f"{type(self).__name__}.{each.name}")
            object.__setattr__(self, each.name, value)

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        return tuple(_options_of(cls))

    @classmethod
    def switch(cls) -> Option:
        return cls.options()[0]

    @property
    def enabled(self) -> bool:
        return bool(getattr(self, self.switch().name))

    def disabled(self) -> typing.Self:
        """The same settings with the switch off."""
        switch = self.switch()
        return dataclasses.replace(self, **{switch.name: False if switch.kind is bool else None})


def _options_of(feature: type[Feature]) -> Iterator[Option]:
    annotations = typing.get_type_hints(feature)
    for each in dataclasses.fields(feature):
        kind, optional = _plain_type(annotations[each.name])
        yield Option(name=each.name, kind=kind, optional=optional, default=each.default, **each.metadata[_METADATA_KEY])


def _plain_type(annotation: Any) -> tuple[type, bool]:
    if isinstance(annotation, types.UnionType):
        (plain,) = [each for each in annotation.__args__ if each is not types.NoneType]
        return plain, True
    return annotation, False


def _converted(kind: type, raw: object) -> Any:
    """`raw` as `kind`, or None where it is no such value. A bool is no number, and 1.5 no integer."""
    if kind is bool:
        if isinstance(raw, bool):
            return raw
        word = str(raw).strip().lower()
        return True if word in _TRUE_WORDS else False if word in _FALSE_WORDS else None
    if kind is str:
        return raw if isinstance(raw, str) else None
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    try:
        number = int(raw) if kind is int and isinstance(raw, str) else float(raw)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return None
    return kind(number)
