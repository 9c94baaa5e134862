"""Where the two engines answer, as whoever started or found them says it to the virtual model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["large", "small"]


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """One engine's OpenAI API, which may be a router's before several replicas.

    `base_url` is without ``/v1`` and without a slash at its end. `model` is the name that the engine serves it under.
    `api_key` goes with every request to it as a bearer token; None: no key is sent. The address stays the same when the
    engine is started again.
    """

    role: Role
    base_url: str
    model: str
    api_key: str | None = None


# Both roles are there.
EngineAddresses = Mapping[Role, EngineAddress]
