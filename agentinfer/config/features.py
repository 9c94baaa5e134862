"""What can be set: one frozen dataclass a feature."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from agentinfer.config.options import Feature, option


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
    collab_warm_in_turns: bool | None = option(
        None, "and while the other one answers; by default where the two engines share neither a GPU nor a core"
    )
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
