"""Turns, sessions, prefixes and tools: what every server of ours counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agentinfer.metrics.spec import LATENCY_BUCKETS_S, CappedLabel, MetricSpec, live

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_GAP_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800, 3600)

TURNS: Final = MetricSpec(
    "agentinfer_turns_total",
    "counter",
    "Turns of agent sessions, by how they ended and whether content rather than a hint told the session.",
    ("api", "outcome", "inferred"),
)
TURN_TTFT: Final = MetricSpec(
    "agentinfer_turn_ttft_seconds",
    "histogram",
    "Seconds from a turn's arrival to its first token.",
    ("api",),
    LATENCY_BUCKETS_S,
)
TURN_LATENCY: Final = MetricSpec(
    "agentinfer_turn_latency_seconds",
    "histogram",
    "Seconds from a turn's arrival to the last byte of its answer.",
    ("api",),
    LATENCY_BUCKETS_S,
)
PROMPT_TOKENS: Final = MetricSpec(
    "agentinfer_turn_prompt_tokens_total",
    "counter",
    "Prompt tokens of turns, by whether the prefix cache had them (cached) or they were run (computed).",
    ("source",),
)
COMPLETION_TOKENS: Final = MetricSpec("agentinfer_turn_completion_tokens_total", "counter", "Tokens of replies.")
SESSIONS: Final = MetricSpec("agentinfer_sessions", "gauge", "Sessions known, by state.", ("state",))
SESSION_BYTES: Final = MetricSpec(
    "agentinfer_session_bytes", "gauge", "Bytes the known sessions are counted as holding."
)
SESSION_EVENTS: Final = MetricSpec(
    "agentinfer_session_events_total",
    "counter",
    "Sessions begun, closed, expired and evicted, and times the texts of one were dropped for memory.",
    ("event",),
)
PREFIX_CAUSES: Final = MetricSpec(
    "agentinfer_turn_prefix_total",
    "counter",
    "Turns by what became of the prefix their session had left in the cache: hit, first_turn, or why it was missed.",
    ("cause",),
)
PREFIX_LOST_TOKENS: Final = MetricSpec(
    "agentinfer_prefix_lost_tokens_total",
    "counter",
    "Prompt tokens that were computed again although the session's previous turn had left them, by why.",
    ("cause",),
)
TOOL_GAP: Final = MetricSpec(
    "agentinfer_tool_gap_seconds",
    "histogram",
    "Seconds between a reply that calls a tool and the session's next turn; tools beyond the first 32 are one.",
    ("tool",),
    _GAP_BUCKETS_S,
)
HINT_ERRORS: Final = MetricSpec(
    "agentinfer_hint_errors_total",
    "counter",
    "Requests refused for a malformed hint, by field; fields beyond the first 32 are one.",
    ("field",),
)
RECORD_DROPPED: Final = MetricSpec(
    "agentinfer_record_dropped_lines_total", "counter", "Lines of the session record that could not be written."
)

METRICS: Final = (
    TURNS,
    TURN_TTFT,
    TURN_LATENCY,
    PROMPT_TOKENS,
    COMPLETION_TOKENS,
    SESSIONS,
    SESSION_BYTES,
    SESSION_EVENTS,
    PREFIX_CAUSES,
    PREFIX_LOST_TOKENS,
    TOOL_GAP,
    HINT_ERRORS,
    RECORD_DROPPED,
)


class Metrics:
    """The live metrics, in `registry` or, with None, in the client library's default one. Build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None, max_label_values: int = 32) -> None:
        self._live = live(METRICS, registry)
        self._tools = CappedLabel(max_label_values)
        self._fields = CappedLabel(max_label_values)
        self._seen_totals: dict[tuple[MetricSpec, tuple[tuple[str, str], ...]], float] = {}

    def turn(
        self, api: str, outcome: str, inferred: bool, ttft_s: float | None = None, latency_s: float | None = None
    ) -> None:
        """Count a turn that ended, and its times where they were measured."""
        self._of(TURNS, api=api, outcome=outcome, inferred=str(inferred).lower()).inc()
        if ttft_s is not None:
            self._of(TURN_TTFT, api=api).observe(ttft_s)
        if latency_s is not None:
            self._of(TURN_LATENCY, api=api).observe(latency_s)

    def tokens(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """Count a turn's tokens."""
        self._of(PROMPT_TOKENS, source="cached").inc(cached_tokens)
        self._of(PROMPT_TOKENS, source="computed").inc(max(0, prompt_tokens - cached_tokens))
        self._of(COMPLETION_TOKENS).inc(completion_tokens)

    def prefix(self, cause: str, tokens_lost: int = 0) -> None:
        """Count what became of a turn's prefix."""
        self._of(PREFIX_CAUSES, cause=cause).inc()
        if tokens_lost > 0:
            self._of(PREFIX_LOST_TOKENS, cause=cause).inc(tokens_lost)

    def tool_gap(self, tool: str | None, seconds: float) -> None:
        """Observe the gap after a call of `tool`; nothing for None."""
        if tool is not None:
            self._of(TOOL_GAP, tool=self._tools.value(tool)).observe(max(0.0, seconds))

    def hint_error(self, field: str) -> None:
        """Count a request that was refused for its hint `field`."""
        self._of(HINT_ERRORS, field=self._fields.value(field)).inc()

    def sessions(self, counts: Mapping[Any, int], totals: Mapping[str, int], size_bytes: int) -> None:
        """Take over the session table's figures: sessions by state, events since the start, bytes held."""
        for state, count in counts.items():
            self._of(SESSIONS, state=str(state)).set(count)
        for event, total in totals.items():
            self._advance(SESSION_EVENTS, total, event=event)
        self._of(SESSION_BYTES).set(size_bytes)

    def record_dropped(self, total: int) -> None:
        """Take over how many record lines were dropped since the start."""
        self._advance(RECORD_DROPPED, total)

    def _of(self, spec: MetricSpec, **labels: str) -> Any:
        live = self._live[spec.name]
        return live.labels(**labels) if spec.labels else live

    def _advance(self, spec: MetricSpec, total: float, **labels: str) -> None:
        """Bring a counter up to a total that is kept elsewhere."""
        key = (spec, tuple(labels.items()))
        step = total - self._seen_totals.get(key, 0)
        if step > 0:
            self._of(spec, **labels).inc(step)
            self._seen_totals[key] = total
