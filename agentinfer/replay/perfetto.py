"""A replay as a Chrome trace (open it in ui.perfetto.dev): a row a session; slices queue, prefill, decode, tool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agentinfer.replay.driver import SessionResult, TurnResult

_PROCESS = 1


def chrome_trace(results: Sequence[SessionResult]) -> dict[str, Any]:
    """The trace as a JSON object. Where the server tells no queue time, queue and prefill are one slice `ttft`."""
    events: list[dict[str, Any]] = [_name("process_name", 0, "agentinfer replay")]
    for row, result in enumerate(results, 1):
        label = f"{result.session.id} (warm-up)" if result.is_warmup else result.session.id
        events.append(_name("thread_name", row, label))
        events.append({**_name("thread_sort_index", row, ""), "args": {"sort_index": row}})
        for turn in result.turns:
            events += [_slice(row, turn, *span) for span in _spans(turn)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _spans(turn: TurnResult) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end in seconds since the replay began; they follow one another without a hole."""
    exchange = turn.exchange
    began_s, ended_s = turn.started_s, turn.started_s + exchange.latency_s
    if exchange.error:
        yield "error", began_s, ended_s
        return
    first_s = ended_s if exchange.ttft_s is None else began_s + exchange.ttft_s
    queue_s = turn.server.get("queue_s")
    if queue_s is None:
        yield "ttft", began_s, first_s
    else:
        computed_s = min(began_s + queue_s, first_s)
        yield "queue", began_s, computed_s
        yield "prefill", computed_s, first_s
    yield "decode", first_s, ended_s
    if turn.gap_s > 0:
        yield "tool", ended_s, ended_s + turn.gap_s


def _slice(row: int, turn: TurnResult, name: str, began_s: float, ended_s: float) -> dict[str, Any]:
    exchange = turn.exchange
    arguments: dict[str, Any] = {"turn": turn.index}
    if name == "tool":
        arguments["tools"] = ", ".join(turn.tools) or "none (a person, or not recorded)"
    elif name == "error":
        arguments["error"] = exchange.error
    elif name == "decode":
        arguments["output_tokens"] = exchange.completion_tokens
    else:
        arguments |= {"prompt_tokens": exchange.prompt_tokens, "cached_tokens": exchange.cached_tokens}
    return {
        "name": name,
        "cat": "replay",
        "ph": "X",
        "pid": _PROCESS,
        "tid": row,
        "ts": began_s * 1e6,
        "dur": max(0.0, ended_s - began_s) * 1e6,
        "args": arguments,
    }


def _name(kind: str, row: int, label: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": _PROCESS, "tid": row, "ts": 0, "args": {"name": label}}
