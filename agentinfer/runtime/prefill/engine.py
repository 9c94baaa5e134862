"""The engine's door for prompts that nobody asked to be answered: what is their text in tokens, and computing their KV.

The KV of a shortened context is of use only where its tokens are those of the real turn to come. So the request goes
through SGLang's own chat route, template and all, and is stopped where it would enter the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from agentinfer.runtime.requests import ARRIVAL_KEY, HINTS_KEY
from agentinfer.runtime.seams import Seam, rows_of_feature
from agentinfer.runtime.turns import current_turn

_GENERATE = "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request"


def _rows(feature: str) -> tuple[Seam, ...]:
    row = rows_of_feature(feature)
    return (
        row(
            _GENERATE,
            ("self", "obj", "request"),
            "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._handle_non_streaming_request",
            "where a chat request's prompt is known in tokens; and by which pieces of a prompt are computed",
            "hook",
            ("launcher",),
        ),
        row(
            "sglang.srt.managers.io_struct.GenerateReqInput",
            None,
            "sglang.srt.entrypoints.openai.serving_chat",
            "a piece of a prompt, as a request of its own",
            "call",
            ("launcher",),
        ),
    )


# Either feature stands on them without the other.
SEAMS = (
    *_rows("compress"),
    *_rows("prefill_route"),
    rows_of_feature("prefill_route")(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.max_req_input_len",
        None,
        None,
        "a longer prompt is refused before any of it is computed",
        "read",
        ("launcher",),
    ),
)

# With the scheduler's own order of turns: after any of an agent.
_LAST_PRIORITY: Final = -(1 << 30)
# What besides its tokens decides which cached KV a prompt can use, and where it is computed.
IDENTITY: Final = ("lora_path", "extra_key", "cache_salt", "routed_dp_rank")
_NOT_TEXT: Final = ("image_data", "video_data", "audio_data", "input_embeds")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's prompt as the engine would get it; `identity` are the request's fields that its KV depends on."""

    ids: tuple[int, ...] = field(repr=False)
    identity: dict[str, Any]
    manager: Any = field(repr=False)


@dataclass(slots=True)
class Wanted:
    """Bound while a request is made that only asks for its prompt. `why_not` says what is in the way."""

    prompt: Prompt | None = None
    why_not: str = "the request did not reach the engine"


wanted_prompt: ContextVar[Wanted | None] = ContextVar("agentinfer_wanted_prompt", default=None)


def install(config: Any, hook: Callable[..., None]) -> None:
    """Register the hook of this module through `hook` (see `seams.hook`)."""
    hook(_GENERATE, _stop_at_the_door, "around")


async def compute(prompt: Prompt, num_tokens: int, session_id: str, now_s: float) -> int:
    """Put the KV of the first `num_tokens` of a prompt into the cache; how many of them had to be computed.

    `session_id` is whose the KV is for the scheduler, `now_s` the time on the HTTP process's clock. Raises ValueError
    where the engine refuses it.
    """
    from sglang.srt.managers.io_struct import GenerateReqInput

    hints = {"session": session_id, "priority": _LAST_PRIORITY}
    piece = GenerateReqInput(
        input_ids=list(prompt.ids[:num_tokens]),
        sampling_params={
            "max_new_tokens": 1,
            "temperature": 0,
            "custom_params": {HINTS_KEY: hints, ARRIVAL_KEY: now_s},
        },
        stream=False,
        log_metrics=False,
        session_id=session_id,
        **prompt.identity,
    )
    outputs = prompt.manager.generate_request(piece, None)
    try:
        async for output in outputs:
            counts = output["meta_info"]
            reason = counts.get("finish_reason")
            if isinstance(reason, dict) and reason.get("type") == "abort":
                raise ValueError(str(reason.get("message")))
            return max(0, int(counts["prompt_tokens"]) - int(counts.get("cached_tokens", 0)))
    finally:
        await outputs.aclose()
    raise ValueError("the engine gave no answer")


def _stop_at_the_door(original: Callable[..., Any], manager: Any, obj: Any, request: Any = None) -> Any:
    wanted = wanted_prompt.get()
    if wanted is None:
        followed = current_turn.get()
        if followed is not None and not _carried(obj):
            followed.prompt = _single(obj.input_ids or obj.text)
        return original(manager, obj, request)
    carried = _carried(obj)
    if carried:
        wanted.why_not = f"the prompt has {carried[0]}"
    else:
        ids: Sequence[int] = obj.input_ids or manager.tokenizer.encode(obj.text)
        identity = {name: getattr(obj, name, None) for name in IDENTITY}
        given = {name: value for name, value in identity.items() if value is not None}
        wanted.prompt = Prompt(tuple(ids), given, manager)
    # Every API of SGLang answers a ValueError with HTTP 400.
    raise ValueError("only the prompt was asked for")


def _carried(obj: Any) -> list[str]:
    """What besides text is in a request."""
    return [name for name in _NOT_TEXT if getattr(obj, name, None)]


def _single(prompt: Any) -> Any:
    """A prompt in tokens or as text; None for several at once."""
    return prompt if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else None
