"""Embedded models: real, small models that come as Python packages and are served without a model hub."""

from __future__ import annotations

from pathlib import Path

from agentinfer.errors import ModelError
from agentinfer.models.catalogue import CATALOGUE, DEFAULT_MODEL, DTYPES, EmbeddedModel, find_model
from agentinfer.models.store import ModelStore

__all__ = ["DEFAULT_MODEL", "DTYPES", "PREFIX", "EmbeddedModel", "catalogue", "prepare", "resolve"]

PREFIX = "embedded:"


def catalogue() -> tuple[EmbeddedModel, ...]:
    """Every embedded model, the default one first."""
    return CATALOGUE


def prepare(name: str, dtype: str = "bfloat16") -> Path:
    """The Hugging Face directory of the embedded model `name`, converted on first use and then taken from the cache.

    Takes seconds the first time, well under a millisecond later. Raises `ModelError` for an unknown name or dtype, for
    packages that cannot be had, damaged bytes, or a cache folder that cannot be written.
    """
    model = find_model(name)
    if dtype not in DTYPES:
        raise ModelError(f"embedded models come as {', '.join(DTYPES)}, not {dtype!r}")
    return ModelStore().prepare(model, dtype)


def resolve(path_or_embedded_name: str, dtype: str = "bfloat16") -> str:
    """Turns ``embedded:NAME`` into the model's directory; leaves any other path or hub name as it is.

    Raises as `prepare` does.
    """
    if not path_or_embedded_name.startswith(PREFIX):
        return path_or_embedded_name
    return str(prepare(path_or_embedded_name.removeprefix(PREFIX), dtype))
