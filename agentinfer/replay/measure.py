"""From results to figures: the summary keys that reports compare, and the raw samples they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentinfer.replay.driver import SessionResult, TurnResult

RESULT_FORMAT = "agentinfer.replay"
RESULT_VERSION = 1

CACHE_UNKNOWN = (
    "not reported: start the server with --enable-cache-report, or under agentinfer with sessions on, to know what was "
    "served from the prefix cache"
)


def summarise(results: Sequence[SessionResult], has_cache_report: bool | None) -> dict[str, Any]:
    """Summary and samples of the sessions that are no warm-up. None stands for what was not measured, never 0.

    Times are seconds. Completion runs from a session's first request to its last token, its tool gaps included, and is
    taken over complete sessions only. `tpot_mean_s` is the mean over turns of decode time by (output tokens - 1).
    `has_cache_report` is the server's own setting, None when unknown: SGLang leaves cached tokens out when there are 0.
    """
    counted = [r for r in results if not r.is_warmup]
    turns = [t for r in counted for t in r.turns]
    answered = [t for t in turns if not t.exchange.error]
    completions = [r.ended_s - r.started_s for r in counted if r.is_complete]
    latencies = [t.exchange.latency_s for t in answered]
    cached, source = _cached_tokens(turns, has_cache_report)
    prompt_tokens = [t.exchange.prompt_tokens for t in turns if id(t) in cached]
    later = [t for t in turns if t.index > 0 and id(t) in cached]
    output_tokens = sum(t.exchange.completion_tokens or 0 for t in turns)
    wall_s = max((r.ended_s for r in counted), default=0.0) - min((r.started_s for r in counted), default=0.0)
    forced = [t for t in turns if t.is_as_recorded is not None]
    return {
        "completion_mean_s": _mean(completions),
        "completion_p50_s": _percentile(completions, 50),
        "completion_p95_s": _percentile(completions, 95),
        "worst_turn_s": max(latencies, default=None),
        "ttft_p50_s": _percentile([t.exchange.ttft_s for t in answered if t.exchange.ttft_s is not None], 50),
        "tpot_mean_s": _mean([tpot for t in answered if (tpot := tpot_s(t)) is not None]),
        "prompt_tokens_cached": sum(cached.values()) if cached else None,
        "prompt_tokens_computed": sum(p or 0 for p in prompt_tokens) - sum(cached.values()) if cached else None,
        "output_tokens_per_s": output_tokens / wall_s if wall_s > 0 else None,
        "sessions": len(counted),
        "sessions_complete": sum(r.is_complete for r in counted),
        "sessions_warmup": len(results) - len(counted),
        "turns": len(turns),
        "errors": len(turns) - len(answered),
        "errors_by_kind": dict(Counter(t.exchange.error_kind for t in turns if t.exchange.error)),
        "forced_checked": len(forced),
        "forced_mismatches": sum(not t.is_as_recorded for t in forced) if forced else None,
        "later_turns_hit_rate": _ratio(
            sum(cached[id(t)] for t in later), sum(t.exchange.prompt_tokens or 0 for t in later)
        ),
        "cached_tokens_source": source,
        # A server keeps only the last turns of a session: a sum over a part must not pass for the whole.
        "cached_tokens_turns": len(cached),
        "prompt_tokens": sum(t.exchange.prompt_tokens or 0 for t in turns),
        "output_tokens": output_tokens,
        "tool_gap_s": sum(t.gap_s for t in turns),
        "wall_s": wall_s,
        "samples": {
            "sessions": [_session_sample(r) for r in counted],
            "turns": [_turn_sample(r, t, cached.get(id(t))) for r in counted for t in r.turns],
        },
    }


def tpot_s(turn: TurnResult) -> float | None:
    """Seconds an output token after the first; None with fewer than two tokens."""
    exchange = turn.exchange
    if exchange.ttft_s is None or exchange.last_token_s is None or (exchange.completion_tokens or 0) < 2:
        return None
    return (exchange.last_token_s - exchange.ttft_s) / ((exchange.completion_tokens or 0) - 1)


def _cached_tokens(turns: Sequence[TurnResult], has_cache_report: bool | None) -> tuple[dict[int, int], str]:
    """Cached prompt tokens by id(turn), for turns where they are known, and where the knowledge comes from."""
    known = [t for t in turns if t.exchange.prompt_tokens is not None]
    if has_cache_report or any(t.exchange.cached_tokens is not None for t in known):
        return {id(t): t.exchange.cached_tokens or 0 for t in known}, "usage.prompt_tokens_details"
    told = {id(t): t.server["cached_tokens"] for t in known if isinstance(t.server.get("cached_tokens"), int)}
    return told, "/agentinfer/sessions" if told else CACHE_UNKNOWN


def _session_sample(result: SessionResult) -> dict[str, Any]:
    return {
        "session": result.session.id,
        "task": result.session.task,
        "is_complete": result.is_complete,
        "started_s": result.started_s,
        "completion_s": result.ended_s - result.started_s,
        "tool_gap_s": sum(t.gap_s for t in result.turns),
        "turns": len(result.turns),
    }


def _turn_sample(result: SessionResult, turn: TurnResult, cached_tokens: int | None) -> dict[str, Any]:
    exchange = turn.exchange
    sample: dict[str, Any] = {
        "session": result.session.id,
        "turn": turn.index,
        "started_s": turn.started_s,
        "latency_s": exchange.latency_s,
        "ttft_s": exchange.ttft_s,
        "tpot_s": tpot_s(turn),
        "prompt_tokens": exchange.prompt_tokens,
        "cached_tokens": cached_tokens,
        "output_tokens": exchange.completion_tokens,
        "finish_reason": exchange.finish_reason,
        "gap_s": turn.gap_s,
    }
    if turn.is_as_recorded is not None:
        sample["is_as_recorded"] = turn.is_as_recorded
    if exchange.error:
        sample["error"] = exchange.error
    if turn.server:
        sample["server"] = turn.server
    return sample


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
