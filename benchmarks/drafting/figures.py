"""From counts to the figures of a result row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.drafting.replay import Tally


def figures(tallies: Sequence[Tally]) -> dict[str, Any] | None:
    """Figures over some sessions, means over steps or tokens and not over sessions; None without a verify step.

    `tokens_per_step` is what verify steps emitted over their number, so the token that prefill gives is not in it;
    `accept_length` is SGLang's `spec_accept_length`, all reply tokens over the same number. `all_in_us_per_token` is by
    the clock; `cpu_us_per_token` takes processor time instead where a turn starts and ends.
    """
    steps = sum(t.steps for t in tallies)
    if steps == 0:
        return None
    turns = sum(t.turns for t in tallies)
    output_tokens = sum(t.output_tokens for t in tallies)
    drafted = sum(t.drafted_tokens for t in tallies)
    accepted = sum(t.accepted_tokens for t in tallies)
    us_per_token = {
        part: sum(getattr(t, f"{part}_ns") for t in tallies) / 1000 / output_tokens
        for part in ("index", "draft", "update", "finish")
    }
    step_ns = sum(t.draft_ns + t.update_ns for t in tallies)
    cpu_ns = step_ns + sum(t.turn_cpu_ns for t in tallies)
    by_session = [(t.output_tokens - t.turns) / t.steps for t in tallies if t.steps]
    return {
        "tokens_per_step": (output_tokens - turns) / steps,
        "drafted_per_step": drafted / steps,
        "all_in_us_per_token": sum(us_per_token.values()),
        "cpu_us_per_token": cpu_ns / 1000 / output_tokens,
        "us_per_token": us_per_token,
        "accepted_of_drafted": accepted / drafted if drafted else None,
        "accept_length": output_tokens / steps,
        "sessions": len(tallies),
        "turns": turns,
        "steps": steps,
        "output_tokens": output_tokens,
        "session_tokens_per_step": {
            "first": by_session[0],
            "median": statistics.median(by_session),
            "worst": min(by_session),
            "best": max(by_session),
        },
    }


def accepted_per_step(tallies: Sequence[Tally]) -> list[int]:
    """How many steps accepted 0, 1, 2, ... drafted tokens."""
    most = max((number for t in tallies for number in t.accepted_per_step), default=0)
    return [sum(t.accepted_per_step.get(number, 0) for t in tallies) for number in range(most + 1)]
