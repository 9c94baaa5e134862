"""How many tokens a message takes, without its tokenizer: characters, at a rate learned from the engine's counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agentinfer.messages import Message

# English and code take about 3.5 characters a token in today's vocabularies; the first turn's count replaces it.
_TOKENS_PER_CHAR: Final = 1 / 3.5
# Role and separators of a message in a chat template.
_MESSAGE_TOKENS: Final = 5


class Sizes:
    """The rate of one session, since code, prose and Chinese differ by a factor of three.

    `observe` sets it so that the estimate of the prompt just counted is exact, which is what the next, slightly longer
    prompt is estimated with.
    """

    def __init__(self, tokens_per_char: float = _TOKENS_PER_CHAR) -> None:
        self.tokens_per_char = tokens_per_char

    def observe(self, messages: Iterable[Message], prompt_tokens: int) -> None:
        """The engine counted `prompt_tokens` in the prompt of `messages`."""
        num_messages = num_chars = 0
        for message in messages:
            num_messages += 1
            num_chars += chars(message)
        in_texts = prompt_tokens - _MESSAGE_TOKENS * num_messages
        if num_chars >= 256 and in_texts > 0:
            self.tokens_per_char = min(4.0, max(0.05, in_texts / num_chars))

    def text(self, text: str) -> int:
        """Tokens of a piece of text."""
        return round(len(text) * self.tokens_per_char)

    def message(self, message: Message) -> int:
        """Tokens of a message, its place in the template included."""
        return round(chars(message) * self.tokens_per_char) + _MESSAGE_TOKENS

    def messages(self, messages: Iterable[Message]) -> int:
        return sum(map(self.message, messages))


def chars(message: Message) -> int:
    """Characters that end up in the prompt."""
    called = sum(len(call.name) + len(call.arguments_text) for call in message.tool_calls)
    return len(message.text) + len(message.reasoning_text) + called
