"""Whether the engine's chat template can say what a shortened context has: asked once, before anything is served."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from agentinfer.errors import ConfigError
from agentinfer.runtime.seams import Seam

logger = logging.getLogger(__name__)

SEAMS = (
    Seam(
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager.tokenizer",
        parameters=None,
        caller=None,
        reason="its chat template, which must render tool results and may refuse two assistant messages in a row",
        feature="compress",
        door="read",
        processes=("launcher",),
    ),
)

_RESULT: Final = "result-of-a-tool"
_NOTE: Final = "a-note-as-a-thought"
_NEXT: Final = "the-next-thought"

Render = Callable[[Sequence[dict[str, Any]]], str]


def note_may_be_a_step(render: Render) -> bool:
    """Whether a note can be a message of its own among the assistant's.

    Raises ConfigError where not even a tool result is rendered: nothing could be shortened.
    """
    task = {"role": "user", "content": "a task"}
    work = [_call("call_1", ""), {"role": "tool", "tool_call_id": "call_1", "content": _RESULT}]
    if _RESULT not in _rendered(render, [task, *work]):
        raise ConfigError(
            "--agentinfer-compress: the model's chat template renders no tool results, so that there is nothing to "
            "shorten. Give SGLang a template that does (--chat-template), or leave the flag out"
        )
    following = [_call("call_2", _NEXT), {"role": "tool", "tool_call_id": "call_2", "content": "other"}]
    text = _rendered(render, [task, *work, {"role": "assistant", "content": _NOTE}, *following])
    is_fine = 0 <= text.find(_NOTE) < text.find(_NEXT)
    if not is_fine:
        logger.info("the chat template takes no two assistant messages in a row: notes stand behind tool results")
    return is_fine


def engine_render(tokenizer: Any) -> Render:
    """Rendering as SGLang does it for a chat request."""
    return lambda messages: str(
        tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    )


def _call(call_id: str, text: str) -> dict[str, Any]:
    function = {"name": "look", "arguments": {"at": "it"}}
    return {
        "role": "assistant",
        "content": text,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def _rendered(render: Render, messages: Sequence[dict[str, Any]]) -> str:
    try:
        return render(messages)
    except Exception as error:  # a template raises what it likes
        logger.debug("the chat template refuses %s: %s", [message["role"] for message in messages], error)
        return ""
