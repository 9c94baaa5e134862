"""What the virtual model is called, and how patient it is with its engines."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentinfer.collab_lang.settings import CollabSettings
from agentinfer.errors import ConfigError

# A server ends nobody's session.
_UNLIMITED = CollabSettings(max_steps=None)


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """Raises ConfigError for a value that makes no sense.

    `name`: the virtual model's. `check_timeout_s`: a check that takes longer is given up, its verdict is missing.
    An engine is asked every `health_period_s` whether it lives; it counts as down when it refuses the connection, or
    gives no answer within `health_timeout_s` for `misses_to_down` times in a row. `max_sessions` and
    `max_session_bytes` bound what is remembered, `session_expiry_s` for how long. `api_key`: what clients must send,
    None for no key. `warms`: whether the silent model reads ahead while tools run; `warms_in_turns`: and while the
    other one answers, for engines that share no device. `checks_model_name`: whether a chat for an unknown model is
    refused (404) or taken for the virtual one.
    """

    collab: CollabSettings = field(default=_UNLIMITED)
    name: str = "collab"
    warms: bool = True
    warms_in_turns: bool = False
    check_timeout_s: float = 120.0
    health_period_s: float = 2.0
    health_timeout_s: float = 10.0
    misses_to_down: int = 3
    max_sessions: int = 4096
    max_session_bytes: int = 256 << 20
    session_expiry_s: float = 3600.0
    api_key: str | None = None
    checks_model_name: bool = True

    def __post_init__(self) -> None:
        if self.collab.max_steps is not None:
            raise ConfigError(
                f"max_steps: got {self.collab.max_steps}; the virtual model ends no session, so leave it out"
            )
        if not self.name or self.name == "default":
            raise ConfigError(f"the virtual model's name: got {self.name!r}, expected one of its own")
        for name in ("check_timeout_s", "health_period_s", "health_timeout_s", "session_expiry_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected more than 0 seconds")
        for name in ("misses_to_down", "max_sessions", "max_session_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least 1")

    @property
    def reads_ahead(self) -> str:
        """When the silent model does: `always`, `between_turns` or `never`."""
        if not self.warms:
            return "never"
        return "always" if self.warms_in_turns else "between_turns"
