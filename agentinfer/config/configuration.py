"""All features' settings in one value, which the launcher hands to its child processes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

from agentinfer.config.features import (
    CollabConfig,
    CompressionConfig,
    ForcedReplayConfig,
    PrefillConfig,
    RecordConfig,
    SchedulingConfig,
    SessionsConfig,
    SpeculationConfig,
)
from agentinfer.config.options import Feature
from agentinfer.config.variables import CONFIG_VARIABLE, DISABLE_VARIABLE
from agentinfer.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class AgentInferConfig:
    """All features' settings. Raises ConfigError when an enabled feature lacks one that it needs."""

    sessions: SessionsConfig = dataclasses.field(default_factory=SessionsConfig)
    record: RecordConfig = dataclasses.field(default_factory=RecordConfig)
    forced_replay: ForcedReplayConfig = dataclasses.field(default_factory=ForcedReplayConfig)
    speculation: SpeculationConfig = dataclasses.field(default_factory=SpeculationConfig)
    scheduling: SchedulingConfig = dataclasses.field(default_factory=SchedulingConfig)
    compress: CompressionConfig = dataclasses.field(default_factory=CompressionConfig)
    prefill_route: PrefillConfig = dataclasses.field(default_factory=PrefillConfig)
    collab: CollabConfig = dataclasses.field(default_factory=CollabConfig)

    def __post_init__(self) -> None:
        enabled = self.enabled_features
        for each in self.features():
            missing = [name for name in each.requires if name not in enabled]
            if each.enabled and missing:
                raise ConfigError(
                    f"{each.switch().flag} is on but needs {', '.join(missing)}, which is off. Turn it on "
                    f"({FEATURES[missing[0]].switch().flag}) or turn {each.feature} off too "
                    f"({DISABLE_VARIABLE}={','.join([*missing, each.feature])})"
                )

    def features(self) -> tuple[Feature, ...]:
        return tuple(getattr(self, name) for name in FEATURES)

    @property
    def enabled_features(self) -> tuple[str, ...]:
        return tuple(each.feature for each in self.features() if each.enabled)

    def needed_by(self, feature: str) -> tuple[str, ...]:
        """`feature` and the enabled ones that need it: what has to be off for `feature` to be off."""
        return (feature, *(e.feature for e in self.features() if e.enabled and feature in e.requires))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str = CONFIG_VARIABLE) -> Self:
        """Reads `to_json`. Raises ConfigError for anything this version did not write."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}: no JSON ({error}); it is set by agentinfer.launch_server only") from None
        if not isinstance(data, dict) or set(data) != set(FEATURES):
            seen = sorted(data) if isinstance(data, dict) else data
            raise ConfigError(
                f"{where}: got features {seen}, expected {sorted(FEATURES)}; mixed versions of agentinfer?"
            )
        try:
            features: dict[str, Any] = {name: FEATURES[name](**values) for name, values in data.items()}
            return cls(**features)
        except TypeError as error:
            raise ConfigError(f"{where}: {error}; mixed versions of agentinfer?") from None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self | None:
        """The configuration our launcher left in `environ`, or None in a process that is not ours."""
        text = environ.get(CONFIG_VARIABLE)
        return None if not text else cls.from_json(text)


FEATURES: Mapping[str, type[Feature]] = {
    each.feature: each
    for each in (
        SessionsConfig,
        RecordConfig,
        ForcedReplayConfig,
        SpeculationConfig,
        SchedulingConfig,
        CompressionConfig,
        PrefillConfig,
        CollabConfig,
    )
}
