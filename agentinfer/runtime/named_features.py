"""Features that SGLang's own flags can name: the flag switches the feature, and the feature sets what SGLang needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentinfer.config import DISABLE_VARIABLE, ResolvedConfig, SchedulingConfig, SpeculationConfig
from agentinfer.config.options import Feature
from agentinfer.errors import ConfigError

AGENT_SAM = "AGENT_SAM"
AGENT_POLICY = "agent"
# The prefix cache that AgentSched runs on, as SGLang's registry knows it.
AGENT_CACHE = "agentinfer"

# SGLang's policy underneath: the one that leaves the queue as it finds it, and the one that allows priorities.
_BASE_POLICY = "fcfs"


@dataclass(frozen=True, slots=True)
class NamedFeature:
    """`flag value` on SGLang's command line, or ``flag: value`` in its file, switches the feature of `settings`.

    `abbreviation`: the shortest form of the flag that SGLang's parser takes. `is_kept`: SGLang knows the value too, so
    it stays on its command line while the feature is on.
    """

    settings: type[Feature]
    flag: str
    abbreviation: str
    value: str
    is_kept: bool

    @property
    def key(self) -> str:
        return self.flag.removeprefix("--")

    def is_named(self, argv: Sequence[str], file: Mapping[str, object]) -> bool:
        """Whether SGLang is asked for it; the last of several words counts."""
        named = str(file.get(self.key, ""))
        for index, word in enumerate(argv):
            flag, has_value, value = word.partition("=")
            if self._is_flag(flag):
                named = value if has_value else "".join(argv[index + 1 : index + 2])
        return named.lower() == self.value.lower()

    def must_go(self, resolved: ResolvedConfig) -> bool:
        """Whether the name has to leave SGLang's command line. Raises ConfigError where settings disagree."""
        if getattr(resolved.config, self.settings.feature).enabled:
            return not self.is_kept
        source = resolved.sources[self.settings.switch().name]
        if source != DISABLE_VARIABLE:
            raise ConfigError(
                f"{self.flag} {self.value} was given, but {source} turns {self.settings.feature} off: "
                f"leave one of them out"
            )
        return True

    def without(self, argv: Sequence[str], file: Mapping[str, object]) -> tuple[list[str], dict[str, object]]:
        """The command line and the file without the flag and its value."""
        kept: list[str] = []
        is_value = False
        for word in argv:
            if not is_value and not self._is_flag(word.partition("=")[0]):
                kept.append(word)
            is_value = not is_value and "=" not in word and self._is_flag(word)
        return kept, {key: value for key, value in file.items() if key != self.key}

    def _is_flag(self, word: str) -> bool:
        return word.startswith(self.abbreviation) and self.flag.startswith(word)


NAMED_FEATURES = (
    NamedFeature(SpeculationConfig, "--speculative-algorithm", "--speculative-al", AGENT_SAM, is_kept=True),
    NamedFeature(SchedulingConfig, "--schedule-policy", "--schedule-p", AGENT_POLICY, is_kept=False),
)


def speculation_flags(given: Mapping[str, object]) -> list[str]:
    """SGLang's flags for AGENT_SAM. Raises ConfigError where another algorithm was given."""
    algorithm = str(given.get("speculative_algorithm") or AGENT_SAM)
    if algorithm.upper() != AGENT_SAM:
        raise ConfigError(
            f"--speculative-algorithm {algorithm} was given together with {SpeculationConfig.switch().flag}, which is "
            f"{AGENT_SAM}: an engine has one speculative algorithm. Leave one of them out"
        )
    return [] if "speculative_algorithm" in given else ["--speculative-algorithm", AGENT_SAM]


def scheduling_flags(given: Mapping[str, object]) -> list[str]:
    """SGLang's flags for AgentSched. Raises ConfigError where something was given that it cannot be combined with."""
    own = f"{SchedulingConfig.switch().flag} (--schedule-policy {AGENT_POLICY})"
    policy = given.get("schedule_policy")
    if policy is not None:
        raise ConfigError(
            f"--schedule-policy {policy} was given together with {SchedulingConfig.switch().flag}, which is the policy "
            f"{AGENT_POLICY}: an engine has one. Leave one of them out"
        )
    for destination, is_fine, why in _SCHEDULING_NEEDS:
        value = given.get(destination)
        if value is not None and value is not False and value not in is_fine:
            shown = "" if value is True else f" {value}"
            raise ConfigError(
                f"--{destination.replace('_', '-')}{shown} cannot be combined with {own}: {why}. Leave one of them out"
            )
    flags = ["--schedule-policy", _BASE_POLICY]
    return flags if "radix_cache_backend" in given else [*flags, "--radix-cache-backend", AGENT_CACHE]


_OTHER_CACHE = "it brings a prefix cache of its own, and AgentSched decides what its own one keeps"

# Of SGLang's options, by destination: values besides the default that are fine, and why others are not.
_SCHEDULING_NEEDS: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("radix_cache_backend", (AGENT_CACHE,), _OTHER_CACHE),
    ("disable_radix_cache", (), "it schedules by what is cached"),
    ("enable_session_radix_cache", (), "both would decide what is kept of a session"),
    ("enable_lmcache", (), _OTHER_CACHE),
    ("enable_flexkv", (), _OTHER_CACHE),
    ("enable_unified_cache_external_linker", (), "what enters the cache from outside is not mirrored"),
    ("disaggregation_mode", ("null",), "requests then wait in queues that it does not order"),
    ("pp_size", (1,), "the stages' queues would have to agree"),
    ("dp_size", (1,), "the data-parallel controller passes on no messages but SGLang's; start a server a replica"),
    ("enable_dp_attention", (), "the data-parallel controller passes on no messages but SGLang's"),
    ("dllm_algorithm", (), "diffusion models fill their batches otherwise"),
)
