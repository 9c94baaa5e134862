"""From what was played to figures: a cell's own, and policies against each other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentinfer.replay import measure
from agentinfer.replay.driver import SessionResult, TurnResult
from benchmarks.sched_live.playing import Played

_KEPT = (
    *("completion_mean_s", "completion_p95_s", "worst_turn_s", "ttft_p50_s", "tpot_mean_s"),
    *("prompt_tokens", "prompt_tokens_cached", "output_tokens", "wall_s", "sessions_complete", "turns", "errors"),
    *("forced_checked", "forced_mismatches"),
)
_TURN_KEYS = ("session", "turn", "started_s", "latency_s", "ttft_s", "prompt_tokens", "cached_tokens", "output_tokens")
_SESSION_KEYS = ("session", "started_s", "completion_s", "tool_gap_s", "turns")


def cell(played: Played) -> dict[str, Any]:
    """Figures of one policy at one size of the cache, with their samples.

    `hit_rate`: cached by prompt tokens over turns after the first. `recomputed_tokens`: prompt tokens that the same
    session had computed in an earlier turn and that were computed again. `sessions_per_hour` over the whole run.
    """
    summary = measure.summarise(played.sessions, has_cache_report=True)
    turns = [turn for session in played.sessions for turn in session.turns]
    ttfts = [turn.exchange.ttft_s for turn in turns if turn.exchange.ttft_s is not None]
    figures = {name: summary[name] for name in _KEPT} | {
        "hit_rate": summary["later_turns_hit_rate"],
        "ttft_mean_s": float(np.mean(ttfts)),
        "ttft_p95_s": float(np.percentile(ttfts, 95)),
        "turn_mean_s": statistics.fmean(turn.exchange.latency_s for turn in turns),
        "recomputed_tokens": sum(map(recomputed_tokens, played.sessions)),
        "sessions_per_hour": 3600.0 * summary["sessions_complete"] / summary["wall_s"],
    }
    samples = {
        "sessions": _picked(summary["samples"]["sessions"], _SESSION_KEYS),
        "turns": _picked(summary["samples"]["turns"], _TURN_KEYS),
    }
    if played.questions:
        asked = measure.summarise(played.questions, has_cache_report=True)
        calls = [*turns, *(turn for question in played.questions for turn in question.turns)]
        figures |= {
            "questions": asked["turns"],
            "question_errors": asked["errors"],
            "question_mismatches": asked["forced_mismatches"],
            "question_mean_s": asked["completion_mean_s"],
            "question_p95_s": asked["completion_p95_s"],
            "call_mean_s": statistics.fmean(call.exchange.latency_s for call in calls),
            "call_hit_rate": sum(map(_cached, calls)) / sum(call.exchange.prompt_tokens or 0 for call in calls),
        }
        samples["questions"] = _picked(asked["samples"]["turns"], _TURN_KEYS)
    return {**figures, "scheduling": played.scheduling, "samples": samples}


def recomputed_tokens(session: SessionResult) -> int:
    """Prompt tokens that were part of the session's context before and were not found in the cache."""
    total = context = 0
    for turn in session.turns:
        prompt = turn.exchange.prompt_tokens or 0
        total += max(0, min(context, prompt) - _cached(turn))
        context = prompt + (turn.exchange.completion_tokens or 0)
    return total


def rows(cells: Sequence[dict[str, Any]], ours: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each oversubscription: every policy's figures as means over repeats with their spread, the stock
    policy with the best mean completion, and each of `ours` against it, paired by session and repeat, and its worst
    turn by that of FCFS."""
    found = []
    for level in sorted({each["oversubscription"] for each in cells}):
        at = [each for each in cells if each["oversubscription"] == level]
        present = dict.fromkeys(each["policy"] for each in at)
        names = [name for name in present if name not in ours] + [name for name in ours if name in present]
        means = {name: _means([each for each in at if each["policy"] == name]) for name in names}
        stock = [name for name in names if name not in ours]
        best = min(stock, key=lambda name: means[name]["completion_mean_s"]["mean"], default=None)
        found.append(
            {
                "oversubscription": level,
                "kv_tokens": at[0]["kv_tokens"],
                "policies": means,
                "best_stock": best,
                "completion_of_best_stock_by": {name: _paired(at, best, name) for name in names if name in ours}
                if best is not None
                else {},
                "worst_turn_by_fcfs": {
                    name: means[name]["worst_turn_s"]["mean"] / means["fcfs"]["worst_turn_s"]["mean"] for name in names
                }
                if "fcfs" in names
                else {},
            }
        )
    return found


def mixed_rows(cells: Sequence[dict[str, Any]], base: str = "fcfs") -> list[dict[str, Any]]:
    """The paper's table: call latency and end to end relative to `base`, and the hit rate, with the seconds."""
    found = []
    for name in dict.fromkeys(each["policy"] for each in cells):
        pairs = [
            (each, other)
            for each in cells
            for other in cells
            if each["policy"] == name and other["policy"] == base and each["repeat"] == other["repeat"]
        ]
        mine = [each for each, _ in pairs]
        if not mine:
            continue
        found.append(
            {
                "policy": name,
                "call_latency": statistics.fmean(each["call_mean_s"] / other["call_mean_s"] for each, other in pairs),
                "end_to_end": statistics.fmean(
                    each["completion_mean_s"] / other["completion_mean_s"] for each, other in pairs
                ),
                **{
                    figure: statistics.fmean(each[figure] for each in mine)
                    for figure in (
                        *("call_hit_rate", "hit_rate", "call_mean_s", "completion_mean_s", "question_mean_s"),
                        *("question_p95_s", "worst_turn_s"),
                    )
                },
            }
        )
    return found


def _means(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = (
        *("completion_mean_s", "completion_p95_s", "worst_turn_s", "ttft_mean_s", "ttft_p95_s", "sessions_per_hour"),
        *("hit_rate", "recomputed_tokens"),
    )
    return {
        name: {
            "mean": statistics.fmean(each[name] for each in cells),
            "least": min(each[name] for each in cells),
            "most": max(each[name] for each in cells),
        }
        for name in names
    }


def _paired(cells: Sequence[dict[str, Any]], base: str, ours: str) -> dict[str, float]:
    """Mean completion of `base` by ours, and the quartiles of that ratio over sessions."""

    def by_session(name: str) -> dict[tuple[int, str], float]:
        return {
            (each["repeat"], sample["session"]): sample["completion_s"]
            for each in cells
            if each["policy"] == name
            for sample in each["samples"]["sessions"]
        }

    before, after = by_session(base), by_session(ours)
    shared = sorted(set(before) & set(after))
    low, median, high = np.percentile([before[key] / after[key] for key in shared], (25, 50, 75))
    return {
        "of_means": sum(before[key] for key in shared) / sum(after[key] for key in shared),
        "q1": float(low),
        "median": float(median),
        "q3": float(high),
    }


def _cached(turn: TurnResult) -> int:
    return turn.exchange.cached_tokens or 0


def _picked(samples: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {name: round(value, 4) if isinstance(value := sample[name], float) else value for name in names}
        for sample in samples
    ]
