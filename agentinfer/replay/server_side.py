"""What only the server knows: its settings before a replay; afterwards, how long turns queued and what was cached."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from agentinfer.errors import AgentInferError
from agentinfer.replay.client import get_json
from agentinfer.replay.driver import SessionResult

# Settings that a figure depends on. A list of names, because server_info and its command line also hold keys.
_SETTINGS = (
    *("version", "model_path", "served_model_name", "dtype", "quantization", "kv_cache_dtype", "device"),
    *("tp_size", "dp_size", "page_size", "context_length", "max_total_tokens", "max_total_num_tokens"),
    *("max_running_requests", "mem_fraction_static", "chunked_prefill_size", "schedule_policy"),
    *("attention_backend", "sampling_backend", "disable_radix_cache", "radix_eviction_policy"),
    *("enable_hierarchical_cache", "disable_overlap_schedule", "disable_cuda_graph"),
    *("speculative_algorithm", "speculative_num_draft_tokens", "speculative_num_steps"),
    *("enable_cache_report", "tool_call_parser", "reasoning_parser", "random_seed"),
)
_TURN_KEYS = ("queue_s", "prefill_s", "ttft_s", "latency_s", "prompt_tokens", "cached_tokens", "completion_tokens")


_MOST_ASKINGS = 10
_ASK_AGAIN_S = 0.3


@dataclass(frozen=True, slots=True)
class Server:
    """The server under test. `info` holds the settings it told, empty when it tells none."""

    url: str
    model: str
    context_tokens: int | None
    info: dict[str, Any]

    @property
    def has_cache_report(self) -> bool | None:
        return self.info.get("enable_cache_report")


async def inspect(http: aiohttp.ClientSession, url: str, model: str | None) -> Server:
    """Ask for the model and settings. Raises AgentInferError when nothing answers there or it lacks the model."""
    models = await get_json(http, url + "/v1/models")
    if models is None:
        raise AgentInferError(
            f"{url}/v1/models does not answer as an OpenAI server does; is the server up? Start one with "
            "`python -m agentinfer.launch_server`, or name another with --url"
        )
    cards = {str(card.get("id")): card for card in models.get("data") or () if isinstance(card, dict)}
    if not cards or (model is not None and model not in cards):
        raise AgentInferError(f"{url} serves {', '.join(cards) or 'no model'}; asked for {model or 'any'} (--model)")
    name = model or next(iter(cards))
    info = await get_json(http, url + "/server_info") or await get_json(http, url + "/get_server_info") or {}
    settings = {key: info[key] for key in _SETTINGS if info.get(key) is not None}
    if isinstance(settings.get("model_path"), str):
        # The folder's name says which model it is; where it lies is the server's own matter.
        settings["model_path"] = settings["model_path"].rstrip("/").rpartition("/")[2]
    # A KV pool smaller than the model's window bounds a request as well.
    bounds = [n for n in (cards[name].get("max_model_len"), info.get("max_total_num_tokens")) if isinstance(n, int)]
    return Server(url, name, min(bounds, default=None), settings)


async def flush_cache(http: aiohttp.ClientSession, url: str) -> None:
    """Empty the prefix cache. Raises AgentInferError when the server refuses, as it does while requests run."""
    try:
        async with http.post(url + "/flush_cache") as response:
            if response.status == 200:
                return
            reason = f"HTTP {response.status}: {(await response.text())[:200].strip()}"
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
    raise AgentInferError(f"{url}/flush_cache: {reason}; run without --flush-cache, or when the server is idle")


async def collect_turns(http: aiohttp.ClientSession, url: str, results: Sequence[SessionResult]) -> None:
    """Fill in each turn's `server` from `/agentinfer/sessions/{id}`, as far back as the server remembers turns.

    A server writes a turn down after its last byte went out, so what is missing at first is asked for again, for a
    short while. A server without that route is left alone.
    """
    waiting = list(results)
    for _ in range(_MOST_ASKINGS):
        for result in waiting:
            if not await _collect(http, url, result):
                return
        waiting = [r for r in waiting if not all(t.server for t in r.turns[-1:] if not t.exchange.error)]
        if not waiting:
            return
        await asyncio.sleep(_ASK_AGAIN_S)


async def _collect(http: aiohttp.ClientSession, url: str, result: SessionResult) -> bool:
    """False when the server has no such session."""
    told = await get_json(http, f"{url}/agentinfer/sessions/{quote(result.wire_id, safe='')}")
    if told is None:
        return False
    lines = [line for line in told.get("recent_turns") or () if isinstance(line, dict)]
    by_index = {line.get("turn"): line for line in lines}
    for turn in result.turns:
        line = by_index.get(turn.index, {})
        turn.server = {key: line[key] for key in _TURN_KEYS if isinstance(line.get(key), int | float)}
    return True
