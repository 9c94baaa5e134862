"""Token counts of recorded texts: by the embedded model's tokenizer where it is installed, else an estimate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentinfer import models
from agentinfer.errors import ModelError
from agentinfer.replay.render import reply_text
from agentinfer.replay.session import Message
from agentinfer.replay.tokens import CHARS_PER_TOKEN, MESSAGE_OVERHEAD_TOKENS, estimate


class TokenCount:
    """Counts, each text once. `source` says by which means, for the record."""

    def __init__(self, model: str | None = models.DEFAULT_MODEL) -> None:
        """`model`: an embedded model's name; None for the estimate."""
        self._tokenizer = None if model is None else _tokenizer(model)
        known = self._tokenizer is not None
        self.source = f"tokenizer of {model}" if known else f"estimate, {CHARS_PER_TOKEN} characters a token"
        self._known: dict[str, int] = {}

    def messages(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of each message as a template renders it, with what stands around it."""
        texts = [reply_text(message) for message in messages]
        self._learn([text for text in dict.fromkeys(texts) if text not in self._known])
        return [self._known[text] + MESSAGE_OVERHEAD_TOKENS for text in texts]

    def schemas(self, schemas: Sequence[dict[str, Any]]) -> int:
        """Tokens of tool schemas, which a template lists as JSON."""
        texts = [json.dumps(schema, ensure_ascii=False) for schema in schemas]
        self._learn([text for text in texts if text not in self._known])
        return sum(self._known[text] for text in texts)

    def _learn(self, texts: list[str]) -> None:
        if self._tokenizer is None:
            self._known.update((text, estimate(text)) for text in texts)
        else:
            found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            self._known.update((text, len(each.ids)) for text, each in zip(texts, found, strict=True))


def _tokenizer(model: str) -> Any | None:
    """None where the model's packages are not installed."""
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(Path(models.prepare(model)) / "tokenizer.json"))
    except (ImportError, ModelError):
        return None
