"""The figures of a group of sessions: sums for work, medians with quartiles for what a session sees of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.compress.facts import Facts
from benchmarks.compress.measure import SessionWork, Work

_SUMMED = ("carried", "last", "computed", "background", "swaps", "at_swaps", "distil", "waits", "waited")


def summary(sessions: Sequence[SessionWork]) -> dict[str, Any]:
    names = list(sessions[0].work)
    return {
        "sessions": len(sessions),
        "turns": sum(each.work["none"].turns for each in sessions),
        "note_anchors": sum(each.note_anchors for each in sessions),
        "invented_anchors": sum(each.invented for each in sessions),
        "rows": [
            {"variant": name, **_row([each.work[name] for each in sessions], [each.work["none"] for each in sessions])}
            for name in names
        ],
    }


def _row(work: Sequence[Work], none: Sequence[Work]) -> dict[str, Any]:
    facts = Facts()
    for each in work:
        facts.add(each.facts)
    needed = facts.present + facts.retrievable + facts.lost
    warm = [share for each in work for share in each.warm_shares]
    return {
        **{name: sum(getattr(each, name) for each in work) for name in _SUMMED},
        "saved_last": spread([1 - ours.last / base.last for ours, base in zip(work, none, strict=True)]),
        "saved_carried": spread([1 - ours.carried / base.carried for ours, base in zip(work, none, strict=True)]),
        "warm_share": spread(warm) if warm else None,
        "warm_share_least": min(warm, default=None),
        "swaps_under_95_percent_warm": sum(share < 0.95 for share in warm),
        "facts_needed": needed,
        "facts_present": facts.present,
        "facts_retrievable": facts.retrievable,
        "facts_lost": facts.lost,
        "own_words_lost": facts.own_words_lost,
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles, with the samples."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": median, "q1": low, "q3": high, "samples": [round(value, 4) for value in values]}
