"""Where a request's reply ends within the tokens of one step, so that nothing behind the end is ever committed.

SGLang cuts what a client sees, but would keep the tokens behind the end as text of the prefix cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def num_kept(request: Any, new_tokens: Sequence[int]) -> int:
    """How many of `new_tokens` the request may keep, at least 1: up to its first end, or the length it asked for.

    `request` is the engine's, whose `output_ids` hold everything before. The same conditions as upstream's
    `Req.update_finish_state`, asked token by token as in plain decoding.
    """
    params = request.sampling_params
    limit = max(1, min(len(new_tokens), params.max_new_tokens - len(request.output_ids)))
    if not params.ignore_eos:
        ends = _end_tokens(request)
        limit = next((i + 1 for i, token in enumerate(new_tokens[:limit]) if token in ends), limit)
    if params.stop_strs or params.stop_regex_strs:
        limit = next((n for n in range(1, limit) if _has_stop(request, new_tokens[:n])), limit)
    return limit


def _end_tokens(request: Any) -> set[int]:
    ends = set(request.sampling_params.stop_token_ids or ()) | set(request.eos_token_ids or ())
    if request.tokenizer is not None:
        ends.add(request.tokenizer.eos_token_id)
        ends.update(request.tokenizer.additional_stop_token_ids or ())
    return ends


def _has_stop(request: Any, new_tokens: Sequence[int]) -> bool:
    params = request.sampling_params
    span = max(params.stop_str_max_len, params.stop_regex_max_len) + 1
    known = [*request.output_ids[-span:], *new_tokens]
    text = request.tokenizer.decode(known[-span:])
    return any(stop in text for stop in params.stop_strs) or any(
        re.search(pattern, text) for pattern in params.stop_regex_strs
    )
