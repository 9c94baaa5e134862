"""The engine's door: what we know of a turn goes into the request, what the engine measured of it comes out.

All five generation APIs end in `TokenizerManager.generate_request`, so one hook serves them all. Hints travel in fields
that SGLang carries to the scheduler's `Req` anyway (`session_id`, `sampling_params.custom_params`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from agentinfer.runtime.forced import FORCED_KEY, conflicting_param
from agentinfer.runtime.seams import Seam
from agentinfer.runtime.turns import FollowedTurn, current_turn

# The key under which the hints' wire form travels in sampling_params.custom_params.
HINTS_KEY = "agentinfer"
# Beside it, when the request arrived, in seconds on this process's clock.
ARRIVAL_KEY = "agentinfer_arrived_s"

SEAMS = (
    Seam(
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        parameters=("self", "obj", "request"),
        caller="sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._handle_non_streaming_request",
        reason="every generation API ends here: session and hints go in, token counts and times come out",
        feature="sessions",
        door="hook",
        processes=("launcher",),
    ),
)


def install(config: Any, hook: Callable[..., None]) -> None:
    """Register the hook of this module through `hook` (see `seams.hook`)."""
    hook("sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request", _generate_request, "around")


def _generate_request(original: Callable[..., Any], manager: Any, obj: Any, request: Any = None) -> AsyncIterator[Any]:
    followed = current_turn.get()
    if followed is None or isinstance(getattr(obj, "sampling_params", None), list):
        return original(manager, obj, request)
    _put_in(manager, obj, followed)
    return _observed(original(manager, obj, request), followed)


async def _observed(outputs: Any, followed: FollowedTurn) -> AsyncIterator[Any]:
    try:
        async for output in outputs:
            if isinstance(output, Mapping):
                followed.observe(output.get("meta_info") or {})
            yield output
    finally:
        # A client that leaves closes us, not the generator below: close it too, or its request runs to the end.
        await outputs.aclose()


def _put_in(manager: Any, obj: Any, followed: FollowedTurn) -> None:
    if obj.session_id is None and obj.session_params is None:
        obj.session_id = followed.session_id
    params = dict(obj.sampling_params or {})
    custom = dict(params.get("custom_params") or {})
    custom[HINTS_KEY] = followed.wire()
    custom[ARRIVAL_KEY] = followed.arrived_s
    if followed.hints.forced is not None:
        custom[FORCED_KEY] = _forced_ids(manager, params, followed)
        params["max_new_tokens"] = len(custom[FORCED_KEY])
    obj.sampling_params = {**params, "custom_params": custom}


def _forced_ids(manager: Any, params: Mapping[str, Any], followed: FollowedTurn) -> list[int]:
    """The tokens to emit, the end of the turn included. Raises ValueError, which every API answers with HTTP 400."""
    conflict = conflicting_param(params)
    if conflict is not None:
        raise ValueError(f"agentinfer.forced cannot be combined with {conflict}: leave one of them out")
    forced = followed.hints.forced
    assert forced is not None
    vocab_size = manager.model_config.vocab_size
    if forced.token_ids is not None:
        ids = list(forced.token_ids)
        if max(ids) >= vocab_size:
            raise ValueError(
                f"agentinfer.forced.token_ids: {max(ids)} is outside the vocabulary of {vocab_size} tokens"
            )
        return ids
    return [*manager.tokenizer.encode(forced.text, add_special_tokens=False), _end_of_turn(manager)]


def _end_of_turn(manager: Any) -> int:
    """A token at which the engine stops: the tokenizer's own where the model names several."""
    ends = set(manager.model_config.hf_eos_token_id or ())
    own = manager.tokenizer.eos_token_id
    return int(own if own in ends or not ends else min(ends))
