"""What can be set: one frozen dataclass a feature, and how flags, environment and configuration file become one config.

Precedence: flag, then ``AGENTINFER_<OPTION>``, then configuration file, then default. ``AGENTINFER_DISABLE`` comes
above all of them: it is what an operator reaches for when a feature is in the way.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from agentinfer.errors import ConfigError
from agentinfer.options import KEY_PREFIX, VARIABLE_PREFIX, Feature, Option, option

CONFIG_VARIABLE = "AGENTINFER_CONFIG"
DISABLE_VARIABLE = "AGENTINFER_DISABLE"

# Variables with our prefix that are no option. Any other one is refused, since a typo must not quietly change a run.
OTHER_VARIABLES: Mapping[str, str] = {
    CONFIG_VARIABLE: "set by the launcher for its child processes: the resolved configuration as JSON; do not set it",
    DISABLE_VARIABLE: "features to turn off, separated by commas, or `all`; wins over every other source",
    "AGENTINFER_PROOF_DIR": "set by the launcher for its child processes: where schedulers leave their start-up proof",
    "AGENTINFER_CACHE": "folder of the converted embedded models (default: `$XDG_CACHE_HOME/agentinfer`)",
    "AGENTINFER_CPU_STOCK_ATTENTION": "`1` keeps SGLang's own attention on the engine without a GPU, for comparison",
    "AGENTINFER_CLIENTS_PYTHON": "the Python whose environment holds the client packages that tests use",
    "AGENTINFER_TRACES": "folder of recorded sessions that tests and benchmarks read",
}


@dataclasses.dataclass(frozen=True, slots=True)
class SessionsConfig(Feature):
    """Recognising agent sessions, the prefix doctor, our metrics and the `/agentinfer/*` routes."""

    feature: ClassVar[str] = "sessions"
    summary: ClassVar[str] = "Recognise agent sessions, explain prefix misses, serve /agentinfer/* and our metrics."

    sessions: bool = option(True, "recognise agent sessions, with and without hints")
    max_sessions: int = option(
        10_000, "sessions remembered at once; the longest idle one goes first", low=1, high=10**7
    )
    session_expiry_s: float = option(3600.0, "seconds without a request after which a session is forgotten", low=1)
    session_text_mb: int = option(
        256, "MiB of message text kept to explain prefix misses; older sessions keep digests", low=0, high=2**20
    )
    check_model: bool = option(True, "answer HTTP 404 to a request that names a model other than the served one")


@dataclasses.dataclass(frozen=True, slots=True)
class RecordConfig(Feature):
    """The record file of sessions, which `agentinfer replay` reads back."""

    feature: ClassVar[str] = "record"
    requires: ClassVar[tuple[str, ...]] = ("sessions",)
    summary: ClassVar[str] = "Write every turn to a JSON-lines file that `agentinfer replay` reads back."

    record: str | None = option(None, "append every turn to this JSON-lines file", metavar="FILE")


@dataclasses.dataclass(frozen=True, slots=True)
class ForcedReplayConfig(Feature):
    """Forced replay: a request may carry the tokens that the engine is to emit."""

    feature: ClassVar[str] = "forced_replay"
    requires: ClassVar[tuple[str, ...]] = ("sessions",)
    summary: ClassVar[str] = (
        "Let a request carry the tokens to emit, so that recorded sessions can be measured exactly."
    )

    forced_replay: bool = option(False, "accept `agentinfer.forced` in requests; for measuring, not for serving users")


@dataclasses.dataclass(frozen=True, slots=True)
class SpeculationConfig(Feature):
    """AgentSAM: speculative decoding that drafts from what the agents' sessions have said before."""

    feature: ClassVar[str] = "speculation"
    summary: ClassVar[str] = (
        "Draft tokens from the sessions' own text and verify several a step; the answers stay the same. "
        "The same as SGLang's --speculative-algorithm AGENT_SAM."
    )

    speculation: bool = option(False, "decode speculatively with AgentSAM (SGLang's algorithm AGENT_SAM)")
    spec_max_width: int = option(
        16, "tokens verified a step and request at most, the normal one included", low=2, high=64
    )
    spec_shape: str = option(
        "tree", "a draft is one continuation (chain) or may hold alternatives (tree)", choices=("tree", "chain")
    )
    spec_adapt: bool = option(
        True, "verify as many drafted tokens a step as pays by measured times; off: every draft whole"
    )
    spec_store: str | None = option(
        None, "keep finished turns in this folder across restarts; one server writes it, others read", metavar="DIR"
    )
    spec_store_mb: int = option(512, "MiB of the store on disk; the least useful turns go first", low=1, high=2**20)
    spec_memory_mb: int = option(
        256, "MiB for what finished turns said; the namespaces not asked for the longest go first", low=1, high=2**20
    )
    spec_session_mb: int = option(1024, "MiB for live sessions' own text; the longest idle go first", low=1, high=2**20)


@dataclasses.dataclass(frozen=True, slots=True)
class SchedulingConfig(Feature):
    """AgentSched: which sessions run, in which order, and what of theirs stays in the prefix cache."""

    feature: ClassVar[str] = "scheduling"
    requires: ClassVar[tuple[str, ...]] = ("sessions",)
    summary: ClassVar[str] = (
        "Run as many sessions at once as the prefix cache can hold, and keep what will be used again. "
        "The same as SGLang's --schedule-policy agent."
    )

    scheduling: bool = option(False, "schedule by session with AgentSched (SGLang's --schedule-policy agent)")
    sched_max_wait_s: float | None = option(
        None,
        "seconds after which a waiting turn runs whatever it costs; by default as few as cost 6% of the engine's time",
        low=1,
    )
    sched_prefill_tokens_per_s: float | None = option(
        None, "prompt tokens that the engine computes a second; measured while it serves where not given", low=1
    )
    sched_latency_file: str | None = option(
        None, "keep what was learned of how long tools take in this file, across restarts", metavar="FILE"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class CompressionConfig(Feature):
    """AgentCompress: old tool results of a session give way to notes, prepared beside the serving of turns."""

    feature: ClassVar[str] = "compress"
    requires: ClassVar[tuple[str, ...]] = ("sessions",)
    summary: ClassVar[str] = (
        "Put notes in place of sessions' old tool results, and no turn waits for it. The same as --enable-compress."
    )

    compress: bool = option(False, "shorten the memory of long sessions with AgentCompress")
    compress_threshold_tokens: int = option(
        5_000, "no session is shortened before its prompt has as many tokens", low=64, high=2**24
    )
    compress_keep_steps: int = option(3, "the last steps of a session keep their tool results whole", low=1, high=1_000)
    compress_payloads: bool = option(False, "cut long texts in the arguments of old tool calls as well")
    compress_recall: bool = option(
        False, "offer the model a tool `recall` that reads again what was taken out; the server answers it itself"
    )
    compress_model: str = option(
        "extractive",
        "who writes the notes: extractive (no model), engine (the served model), or the base URL of an OpenAI API",
    )
    compress_timeout_s: float = option(60.0, "seconds after which a note that is not there is given up", low=0.1)
    compress_store: str | None = option(
        None, "keep shortened contexts in this folder across restarts of the server", metavar="DIR"
    )
    compress_store_mb: int = option(
        64, "MiB of shortened contexts in memory and on disk; the least recently used go first", low=1, high=2**20
    )


@dataclasses.dataclass(frozen=True, slots=True)
class PrefillConfig(Feature):
    """Prompts computed ahead when a client asks for it."""

    feature: ClassVar[str] = "prefill_route"
    requires: ClassVar[tuple[str, ...]] = ("sessions",)
    summary: ClassVar[str] = (
        "Serve POST /agentinfer/prefill: compute a prompt that is still to come, in pieces between the turns."
    )

    prefill_route: bool = option(False, "serve POST /agentinfer/prefill")
    prefill_max: int = option(16, "prompts computed ahead at once; further requests get HTTP 503", low=1, high=10_000)


@dataclasses.dataclass(frozen=True, slots=True)
class CollabConfig(Feature):
    """AgentCollab: a large and a small model, an engine each, that serve as one model behind one port."""

    feature: ClassVar[str] = "collab"
    summary: ClassVar[str] = (
        "Serve a second, smaller model beside the first and a model `collab` that both speak for. Any flag as "
        "--large-FLAG or --small-FLAG is for one of the two engines."
    )

    collab: str | None = option(
        None,
        "serve this small model as well: its path, or the base URL of a server that has it; the same as "
        "--small-model-path and --small-base-url",
        metavar="PATH",
    )
    collab_large_base_url: str | None = option(
        None, "a server that has the large model, none is started; the same as --large-base-url", metavar="URL"
    )
    collab_model_name: str = option("collab", "the name of the model that both speak for")
    collab_warm_up_steps: int = option(2, "steps of a session that the large model takes first", low=0, high=1_000)
    collab_burst_first: int = option(
        2, "steps that the large model takes at most when it is called in first", low=1, high=1_000
    )
    collab_burst_growth: int = option(
        2, "steps more after each time it was called in and got nowhere", low=0, high=1_000
    )
    collab_burst_max: int = option(6, "steps at most, however often it was called in", low=1, high=1_000)
    collab_threshold: float = option(0.5, "a step counts as progress from this probability of TRUE", low=0, high=1)
    collab_threshold_file: str | None = option(
        None, "take the threshold from this file, which `agentinfer collab calibrate` writes", metavar="FILE"
    )
    collab_check: str = option(
        "block",
        "how a model is asked whether its step made progress: the paper's block with a reason, the verdict alone, off",
        choices=("block", "verdict", "off"),
    )
    collab_warm: bool = option(True, "let the model that is silent read ahead while a tool runs")
    collab_kv_share: float | None = option(
        None,
        "of a GPU's KV memory, the large model's share where both are on it; by default both hold as many tokens",
        low=0.05,
        high=0.95,
    )
    collab_small_cores: int | None = option(
        None,
        "cores that the small engine computes with where there is no GPU; by default half of them",
        low=1,
        high=1024,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class AgentInferConfig:
    """All features' settings. Raises ConfigError when an enabled feature lacks one that it needs."""

    sessions: SessionsConfig = SessionsConfig()
    record: RecordConfig = RecordConfig()
    forced_replay: ForcedReplayConfig = ForcedReplayConfig()
    speculation: SpeculationConfig = SpeculationConfig()
    scheduling: SchedulingConfig = SchedulingConfig()
    compress: CompressionConfig = CompressionConfig()
    prefill_route: PrefillConfig = PrefillConfig()
    collab: CollabConfig = CollabConfig()

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
