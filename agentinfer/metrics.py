"""Our Prometheus metrics: one table that says what each means, and the calls that feed them.

`prometheus_client` is imported when `Metrics` is built, not with this module: SGLang sets its multiprocess folder
first, and the client reads that variable at import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

OTHER: Final = "other"
"""The label value of everything beyond the first few distinct ones."""

_GAP_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800, 3600)
_LATENCY_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric. `name` is as exposed, unit and ``_total`` included; `buckets` are upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


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
    _LATENCY_BUCKETS_S,
)
TURN_LATENCY: Final = MetricSpec(
    "agentinfer_turn_latency_seconds",
    "histogram",
    "Seconds from a turn's arrival to the last byte of its answer.",
    ("api",),
    _LATENCY_BUCKETS_S,
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

COMPRESS_RECALLS: Final = MetricSpec(
    "agentinfer_compress_recalls_total",
    "counter",
    "Calls of `recall` that the server answered: found, or refused for an id that names nothing.",
    ("outcome",),
)

RANK_REQUESTS: Final = MetricSpec(
    "agentinfer_rank_requests_total",
    "counter",
    "Requests to rank search results, by who judged: model, words, fallback (words, as the model failed) or refused.",
    ("judge",),
)
RANK_RESULTS: Final = MetricSpec(
    "agentinfer_rank_results_total", "counter", "Search results that were ranked, kept or dropped.", ("verdict",)
)
RANK_LATENCY: Final = MetricSpec(
    "agentinfer_rank_seconds",
    "histogram",
    "Seconds that a ranking took, its wait for the engine included.",
    ("judge",),
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120),
)

SPEC_STEPS: Final = MetricSpec("agentinfer_spec_steps_total", "counter", "Decode steps of the speculative worker.")
SPEC_DRAFTED: Final = MetricSpec(
    "agentinfer_spec_drafted_tokens_total",
    "counter",
    "Drafted tokens that were verified, beside each step's normal one.",
)
SPEC_ACCEPTED: Final = MetricSpec(
    "agentinfer_spec_accepted_tokens_total", "counter", "Drafted tokens that were accepted, each a decode step saved."
)
SPEC_WIDTH: Final = MetricSpec(
    "agentinfer_spec_width_tokens",
    "histogram",
    "Tokens verified a request in a decode step, the normal one included; 1 is plain decoding.",
    (),
    (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64),
)
SPEC_DRAFT: Final = MetricSpec(
    "agentinfer_spec_draft_seconds",
    "histogram",
    "Seconds of host time that drafting took a decode step, for the whole batch.",
    (),
    (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
)

SCHED_SESSIONS: Final = MetricSpec(
    "agentinfer_sched_sessions",
    "gauge",
    "Live sessions the scheduler knows: members of the working set, visitors for one turn, and those held.",
    ("standing",),
)
SCHED_WAITING: Final = MetricSpec("agentinfer_sched_waiting_turns", "gauge", "Turns that wait for the engine.")
SCHED_PRICE: Final = MetricSpec(
    "agentinfer_sched_price", "gauge", "Shadow price of the prefix cache: 0 when all that is wanted fits."
)
SCHED_COMMITTED: Final = MetricSpec(
    "agentinfer_sched_committed_tokens", "gauge", "Tokens of cache that the working set needs, its growth included."
)
SCHED_BOUND: Final = MetricSpec(
    "agentinfer_sched_wait_bound_seconds", "gauge", "Seconds after which a turn that is held now will run."
)
SCHED_OLDEST: Final = MetricSpec(
    "agentinfer_sched_oldest_wait_seconds", "gauge", "Seconds that the turn waiting longest has waited."
)
SCHED_EVENTS: Final = MetricSpec(
    "agentinfer_sched_events_total",
    "counter",
    "Sessions that joined the working set, were paused or gave their place up while away; turns that visited it, and "
    "that ran because their bound had passed.",
    ("event",),
)
SCHED_SPEED: Final = MetricSpec(
    "agentinfer_sched_prefill_tokens_per_second", "gauge", "Prompt tokens the engine computes a second, as measured."
)

COMPRESS_JOBS: Final = MetricSpec(
    "agentinfer_compress_jobs_total", "counter", "Compressions of a session's memory, by how they ended.", ("end",)
)
COMPRESS_SAVED: Final = MetricSpec(
    "agentinfer_compress_saved_tokens_total",
    "counter",
    "Prompt tokens that turns did without thanks to a shortened context, estimated from characters.",
)
COMPRESS_WARMED: Final = MetricSpec(
    "agentinfer_compress_warmed_tokens_total", "counter", "Tokens of shortened contexts computed beside the turns."
)
COMPRESS_DROPPED: Final = MetricSpec(
    "agentinfer_compress_dropped_lines_total",
    "counter",
    "Lines of a model's notes that were left out because their source does not bear them out.",
)

COLLAB_STEPS: Final = MetricSpec(
    "agentinfer_collab_steps_total", "counter", "Steps of the pair, by who spoke and why.", ("model", "reason")
)
COLLAB_VERDICTS: Final = MetricSpec(
    "agentinfer_collab_verdicts_total",
    "counter",
    "What the next step's speaker was decided by: progress, no_progress or missing.",
    ("model", "verdict"),
)
COLLAB_CHECKS: Final = MetricSpec(
    "agentinfer_collab_checks_total",
    "counter",
    "Progress checks, by how they ended: judged, unreadable, failed, or cancelled since of no more use.",
    ("model", "end"),
)
COLLAB_LATE: Final = MetricSpec(
    "agentinfer_collab_late_verdicts_total", "counter", "Verdicts that came after the next step had begun."
)
COLLAB_CHECK: Final = MetricSpec(
    "agentinfer_collab_check_seconds",
    "histogram",
    "Seconds that a progress check took, beside the agent's tool.",
    ("model",),
    _LATENCY_BUCKETS_S,
)
COLLAB_P_TRUE: Final = MetricSpec(
    "agentinfer_collab_progress_ratio",
    "histogram",
    "The probability of progress that a check gave.",
    ("model",),
    (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
)
COLLAB_SWITCHES: Final = MetricSpec(
    "agentinfer_collab_switches_total", "counter", "Steps that another model spoke than the one before.", ("to",)
)
COLLAB_SWITCH_TOKENS: Final = MetricSpec(
    "agentinfer_collab_switch_tokens_total",
    "counter",
    "Prompt tokens that switches needed and had not seen: there ahead of the turn, or computed within it.",
    ("source",),
)
COLLAB_AHEAD: Final = MetricSpec(
    "agentinfer_collab_prefills_total",
    "counter",
    "Prompts that the silent model was to compute ahead, by how that ended: done, cancelled by the next turn, failed.",
    ("model", "end"),
)
COLLAB_AHEAD_TOKENS: Final = MetricSpec(
    "agentinfer_collab_prefilled_tokens_total", "counter", "Prompt tokens computed ahead of a turn.", ("model",)
)
COLLAB_FAILOVERS: Final = MetricSpec(
    "agentinfer_collab_failovers_total",
    "counter",
    "Turns that lost the engine of a model, before it said a word or in the middle of its reply.",
    ("model", "when"),
)
COLLAB_UP: Final = MetricSpec(
    "agentinfer_collab_engine_up", "gauge", "Whether a model's engine is up: 1 or 0.", ("model",)
)

PREFILL_REQUESTS: Final = MetricSpec(
    "agentinfer_prefill_requests_total",
    "counter",
    "Requests to compute a prompt ahead, by how they ended: completed, superseded, cancelled, client_gone, turn, "
    "no_room, failed or refused.",
    ("end",),
)
PREFILL_TOKENS: Final = MetricSpec(
    "agentinfer_prefill_computed_tokens_total", "counter", "Prompt tokens computed ahead on request."
)
PREFILL_SECONDS: Final = MetricSpec(
    "agentinfer_prefill_seconds",
    "histogram",
    "Seconds that computing a prompt ahead took, the waits for turns included.",
    (),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
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

RANKING_METRICS: Final = (RANK_REQUESTS, RANK_RESULTS, RANK_LATENCY)

# Only where scheduling is on.
SCHEDULING_METRICS: Final = (
    SCHED_SESSIONS,
    SCHED_WAITING,
    SCHED_PRICE,
    SCHED_COMMITTED,
    SCHED_BOUND,
    SCHED_OLDEST,
    SCHED_EVENTS,
    SCHED_SPEED,
)

# Only where compression is on.
COMPRESSION_METRICS: Final = (COMPRESS_JOBS, COMPRESS_SAVED, COMPRESS_WARMED, COMPRESS_DROPPED, COMPRESS_RECALLS)

# Kept by the process in front of the two engines.
COLLAB_METRICS: Final = (
    COLLAB_STEPS,
    COLLAB_VERDICTS,
    COLLAB_CHECKS,
    COLLAB_LATE,
    COLLAB_CHECK,
    COLLAB_P_TRUE,
    COLLAB_SWITCHES,
    COLLAB_SWITCH_TOKENS,
    COLLAB_AHEAD,
    COLLAB_AHEAD_TOKENS,
    COLLAB_FAILOVERS,
    COLLAB_UP,
)

# Only where prompts are computed ahead on request.
PREFILL_METRICS: Final = (PREFILL_REQUESTS, PREFILL_TOKENS, PREFILL_SECONDS)

# Kept by the scheduler's process, and only where speculation is on.
SPECULATION_METRICS: Final = (SPEC_STEPS, SPEC_DRAFTED, SPEC_ACCEPTED, SPEC_WIDTH, SPEC_DRAFT)


class Metrics:
    """The live metrics, in `registry` or, with None, in the client library's default one. Build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None, max_label_values: int = 32) -> None:
        self._live = _live(METRICS, registry)
        self._tools = _CappedLabel(max_label_values)
        self._fields = _CappedLabel(max_label_values)
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


class SpeculationMetrics:
    """The live metrics of speculation, for the process that decodes. As `Metrics`, build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = _live(SPECULATION_METRICS, registry)

    def step(self, drafted: int, accepted: int, width: float, draft_s: float) -> None:
        """Count a decode step; `width` is the mean over its requests."""
        self._live[SPEC_STEPS.name].inc()
        self._live[SPEC_DRAFTED.name].inc(drafted)
        self._live[SPEC_ACCEPTED.name].inc(accepted)
        self._live[SPEC_WIDTH.name].observe(width)
        self._live[SPEC_DRAFT.name].observe(draft_s)


class SchedulingMetrics:
    """The live metrics of scheduling, for the process that serves HTTP. As `Metrics`, build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = _live(SCHEDULING_METRICS, registry)
        self._seen: dict[str, int] = {}

    def update(self, figures: Mapping[str, Any]) -> None:
        """Take over the policy's figures; ones that are missing stay as they were."""
        for standing in ("members", "visitors", "held"):
            if standing in figures:
                self._live[SCHED_SESSIONS.name].labels(standing=standing).set(figures[standing])
        for spec, name in _SCHEDULING_GAUGES:
            if figures.get(name) is not None:
                self._live[spec.name].set(figures[name])
        for event in ("joined", "paused", "parked", "visits", "due"):
            total = int(figures.get(event, 0))
            self._live[SCHED_EVENTS.name].labels(event=event).inc(max(0, total - self._seen.get(event, 0)))
            self._seen[event] = total


class CompressionMetrics:
    """The live metrics of compression, for the process that serves HTTP. As `Metrics`, build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = _live(COMPRESSION_METRICS, registry)
        self._dropped = 0

    def job(self, end: str) -> None:
        """Count a job that ended."""
        self._live[COMPRESS_JOBS.name].labels(end=end).inc()

    def saved(self, num_tokens: int) -> None:
        """Count what a turn's prompt was shorter by."""
        self._live[COMPRESS_SAVED.name].inc(num_tokens)

    def warmed(self, num_tokens: int) -> None:
        """Count tokens computed ahead."""
        self._live[COMPRESS_WARMED.name].inc(num_tokens)

    def recall(self, outcome: str) -> None:
        """Count a call of `recall` that was answered."""
        self._live[COMPRESS_RECALLS.name].labels(outcome=outcome).inc()

    def dropped_lines(self, total: int) -> None:
        """Take over how many lines were left out since the start."""
        self._live[COMPRESS_DROPPED.name].inc(max(0, total - self._dropped))
        self._dropped = total


class RankingMetrics:
    """The live metrics of `POST /agentinfer/rank`, for the process that serves HTTP. Build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = _live(RANKING_METRICS, registry)

    def ranked(self, judge: str, num_results: int, num_kept: int, seconds: float) -> None:
        """Count a ranking and its results."""
        self._live[RANK_REQUESTS.name].labels(judge=judge).inc()
        self._live[RANK_RESULTS.name].labels(verdict="kept").inc(num_kept)
        self._live[RANK_RESULTS.name].labels(verdict="dropped").inc(num_results - num_kept)
        self._live[RANK_LATENCY.name].labels(judge=judge).observe(seconds)

    def refused(self) -> None:
        """Count a request that could not be understood."""
        self._live[RANK_REQUESTS.name].labels(judge="refused").inc()


class CollabMetrics:
    """The live metrics of the pair, for the process in front of its engines. As `Metrics`, build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = _live(COLLAB_METRICS, registry)

    def step(self, model: str, reason: str) -> None:
        """Count a step that was spoken."""
        self._live[COLLAB_STEPS.name].labels(model=model, reason=reason).inc()

    def verdict(self, model: str, verdict: str) -> None:
        """Count what a step was judged by."""
        self._live[COLLAB_VERDICTS.name].labels(model=model, verdict=verdict).inc()

    def check(self, model: str, end: str, took_s: float) -> None:
        """Count a check that ended."""
        self._live[COLLAB_CHECKS.name].labels(model=model, end=end).inc()
        if end == "judged":
            self._live[COLLAB_CHECK.name].labels(model=model).observe(took_s)

    def judged(self, model: str, p_true: float | None, is_late: bool) -> None:
        """Count a check's verdict, with its probability of progress where there is one."""
        if p_true is not None:
            self._live[COLLAB_P_TRUE.name].labels(model=model).observe(p_true)
        if is_late:
            self._live[COLLAB_LATE.name].inc()

    def switch(self, to: str, unseen_tokens: int, computed_tokens: int) -> None:
        """Count a switch, and what its first turn found of the tokens that the model had not seen."""
        self._live[COLLAB_SWITCHES.name].labels(to=to).inc()
        tokens = self._live[COLLAB_SWITCH_TOKENS.name]
        tokens.labels(source="ahead").inc(unseen_tokens - computed_tokens)
        tokens.labels(source="computed").inc(computed_tokens)

    def warmed(self, model: str, end: str, computed_tokens: int) -> None:
        """Count a prompt that was to be computed ahead."""
        self._live[COLLAB_AHEAD.name].labels(model=model, end=end).inc()
        self._live[COLLAB_AHEAD_TOKENS.name].labels(model=model).inc(computed_tokens)

    def failover(self, lost: str, is_mid_reply: bool) -> None:
        """Count a turn that lost its engine."""
        when = "mid_reply" if is_mid_reply else "before_reply"
        self._live[COLLAB_FAILOVERS.name].labels(model=lost, when=when).inc()

    def engine_up(self, model: str, is_up: bool) -> None:
        """Take over whether an engine is up."""
        self._live[COLLAB_UP.name].labels(model=model).set(int(is_up))


class PrefillMetrics:
    """The live metrics of `POST /agentinfer/prefill`, for the process that serves HTTP. Build it once a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._live = _live(PREFILL_METRICS, registry)

    def ended(self, end: str, num_tokens: int, seconds: float) -> None:
        """Count a request that was begun, and the tokens that it computed."""
        self._live[PREFILL_REQUESTS.name].labels(end=end).inc()
        self._live[PREFILL_TOKENS.name].inc(num_tokens)
        self._live[PREFILL_SECONDS.name].observe(seconds)

    def refused(self) -> None:
        """Count a request of which nothing was computed."""
        self._live[PREFILL_REQUESTS.name].labels(end="refused").inc()


_SCHEDULING_GAUGES: Final = (
    (SCHED_WAITING, "waiting"),
    (SCHED_PRICE, "price"),
    (SCHED_COMMITTED, "committed_tokens"),
    (SCHED_BOUND, "bound_s"),
    (SCHED_OLDEST, "oldest_wait_s"),
    (SCHED_SPEED, "measured_prefill_tokens_per_s"),
)


def markdown_table() -> str:
    """The metrics as the Markdown table of docs/metrics.md, which a test holds equal to this."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    specs = (
        *METRICS,
        *RANKING_METRICS,
        *SCHEDULING_METRICS,
        *COMPRESSION_METRICS,
        *PREFILL_METRICS,
        *COLLAB_METRICS,
        *SPECULATION_METRICS,
    )
    for spec in specs:
        labels = ", ".join(f"`{label}`" for label in spec.labels) or "–"
        lines.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return "\n".join(lines) + "\n"


def _live(specs: Iterable[MetricSpec], registry: CollectorRegistry | None) -> dict[str, Any]:
    """The client library's objects by name, in `registry` or its default one."""
    import prometheus_client

    kinds: dict[str, Any] = {
        "counter": prometheus_client.Counter,
        # Only the process that serves HTTP sets our gauges, so the newest value is the value.
        "gauge": partial(prometheus_client.Gauge, multiprocess_mode="mostrecent"),
        "histogram": prometheus_client.Histogram,
    }
    live: dict[str, Any] = {}
    for spec in specs:
        options: dict[str, Any] = {"registry": registry or prometheus_client.REGISTRY}
        if spec.kind == "histogram":
            options["buckets"] = spec.buckets
        live[spec.name] = kinds[spec.kind](spec.name, spec.help, spec.labels, **options)
    return live


class _CappedLabel:
    """Lets the first `limit` distinct values through, because every label value is a time series for ever."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: set[str] = set()

    def value(self, text: str) -> str:
        if text not in self._values:
            if len(self._values) >= self._limit:
                return OTHER
            self._values.add(text)
        return text
