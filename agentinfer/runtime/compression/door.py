"""Asking SGLang's app in this process for what the served model answers, in the name of a session's own client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from agentinfer.runtime.prefill.door import Asked, DoorError, PromptDoor

__all__ = ["AppDoor", "Asked", "DoorError"]


class AppDoor(PromptDoor):
    """The app that our middleware wraps, for prompts and for answers."""

    async def complete(
        self, asked: Asked, messages: Sequence[Any], json_schema: Mapping[str, Any], max_tokens: int
    ) -> str:
        """What the served model answers, held to a JSON schema. Raises DoorError."""
        body = {
            "model": asked.fields.get("model"),
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": {"name": "note", "schema": json_schema}},
        }
        status, answer = await self.post(asked.scope, body)
        try:
            text = orjson.loads(answer)["choices"][0]["message"]["content"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            text = None
        if status != 200 or not isinstance(text, str):
            raise DoorError(f"the engine answered HTTP {status}: {answer[:300].decode(errors='replace')}", status)
        return text
