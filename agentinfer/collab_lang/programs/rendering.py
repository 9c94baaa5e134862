"""A program's messages as one model's own prompt.

The engine renders: its `/tokenize` gives the very tokens that its chat API would compute, with the model's template or
that of `--chat-template`. (A tokenizer loaded here would know of no such flag, and would need the model's files.) Where
an engine cannot (a router without a tokenizer), the frontend language's guess by the model's name stands in, with a
warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sglang.lang.chat_template import ChatTemplate

from agentinfer.collab_lang.programs.conversation import Message, Written

logger = logging.getLogger(__name__)

Post = Callable[[str, dict[str, Any]], Any]

# What opens the reply of a model that thinks first, closed again. Templates that know neither name ignore them.
NO_THINKING: Final = {"enable_thinking": False, "thinking": False}
# What SGLang's chat API knows; a program may make up others.
_ROLES: Final = frozenset(("system", "developer", "user", "assistant", "tool"))
# Stands where a message that is no assistant's goes on; in no template and no vocabulary.
_HERE: Final = "[here-7c1f]"
# Two messages that could come next, and have not even a first character in common.
_NEXT_TEXTS: Final = ("done", "0")


class Refusal(Exception):
    """The engine refuses what it was sent, or has no such route (`is_missing`); the text says which and why."""

    def __init__(self, message: str, is_missing: bool = False) -> None:
        super().__init__(message)
        self.is_missing = is_missing


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine is asked to continue: tokens, or text where the engine itself makes tokens of it.

    `stop` are strings that end a reply in this format.
    """

    ids: tuple[int, ...] | None = field(default=None, repr=False)
    text: str | None = field(default=None, repr=False)
    stop: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Counted, or about a token for every four characters."""
        return len(self.ids) if self.ids is not None else len(self.text or "") // 4


class Renderer:
    """Makes one engine's prompts. `post(path, body)` raises Refusal for a refusal. Safe from several threads."""

    def __init__(self, post: Post, guess: ChatTemplate, name: str) -> None:
        self._post = post
        self._guess = guess
        self._name = name
        self._is_guessing = False
        # Templates that insist on user and assistant in turns: once one did, it always gets them so, for its KV's sake.
        self._is_strict = False
        self._takes_tool_role: bool | None = None
        self._text_of: dict[int, str] = {}
        self._ids_of: dict[str, tuple[int, ...]] = {}

    def prompt(self, what: Written, is_thinking: bool = True) -> Prompt:
        """What the model continues: all that is written. Text without messages is passed through as it is."""
        if what.is_plain_text:
            return Prompt(text=what.begun)
        if self._is_guessing:
            return self._guessed(what)
        try:
            if what.role == "assistant":
                ids = self._reply_ids(what.messages, what.begun, is_thinking)
            else:
                ids = self._ids_of_text(self._text_up_to(what.messages, str(what.role)) + what.begun)
        except Refusal as error:
            logger.warning(
                "%s does not render this chat (%s); the prompt is in the format %r, guessed from the model's name, in "
                "which it may speak worse",
                self._name,
                error,
                self._guess.name,
            )
            self._is_guessing = error.is_missing
            return self._guessed(what)
        return Prompt(ids=tuple(ids))

    def history(self, what: Written) -> Prompt:
        """What the prompts of all messages that may follow `what` begin with; for computing it ahead."""
        if what.is_plain_text or self._is_guessing:
            return self.prompt(what)
        prompts = [self.prompt(what.followed_by("user", text)) for text in _NEXT_TEXTS]
        first, second = (each.ids for each in prompts)
        if first is None or second is None:
            return prompts[0]
        length = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
        return Prompt(ids=first[:length])

    def in_tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """A prompt's tokens. Raises Refusal where the engine does not tell them."""
        if prompt.ids is not None:
            return prompt.ids
        return tuple(self._tokens({"prompt": prompt.text}))

    def word(self, text: str) -> tuple[int, ...]:
        """The tokens of a text by itself. Raises Refusal."""
        if text not in self._ids_of:
            self._ids_of[text] = tuple(self._ids_of_text(text))
        return self._ids_of[text]

    def _reply_ids(self, messages: Sequence[Message], begun: str, is_thinking: bool) -> list[int]:
        known = _ROLES if self._knows_tool_role(messages) else _ROLES - {"tool"}
        messages = [each if each["role"] in known else {**each, "role": "user"} for each in messages]
        if not self._is_strict:
            try:
                return self._tokenize([*messages, {"role": "assistant", "content": begun}], is_thinking)
            except Refusal as error:
                refused = error
            taken = self._tokenize([*in_turns(messages), {"role": "assistant", "content": begun}], is_thinking)
            logger.info("%s: user and assistant take turns in its prompts (%s)", self._name, refused)
            self._is_strict = True
            return taken
        return self._tokenize([*in_turns(messages), {"role": "assistant", "content": begun}], is_thinking)

    def _tokenize(self, messages: list[Message], is_thinking: bool = True) -> list[int]:
        body: dict[str, Any] = {"messages": messages, "continue_final_message": True}
        if not is_thinking:
            body["chat_template_kwargs"] = NO_THINKING
        return self._tokens(body)

    def _tokens(self, body: dict[str, Any]) -> list[int]:
        tokens = self._post("/tokenize", body).get("tokens")
        if not isinstance(tokens, list) or not tokens:
            raise Refusal(f"/tokenize answered {str(tokens)[:80]}")
        return tokens

    def _ids_of_text(self, text: str) -> list[int]:
        return self._tokens({"prompt": text, "add_special_tokens": False})

    def _text_up_to(self, messages: Sequence[Message], role: str) -> str:
        """The prompt's text to where a message of another role than the assistant's has its first character."""
        ids = self._tokenize([*messages, {"role": role, "content": _HERE}, {"role": "assistant", "content": ""}])
        text = self._text(ids)
        if _HERE not in text:
            raise Refusal(f"its template leaves out messages of role {role}")
        return text[: text.rindex(_HERE)]

    def _text(self, ids: list[int]) -> str:
        return str(self._post("/detokenize", {"tokens": ids, "skip_special_tokens": False}).get("text"))

    def ending(self, prompt: Prompt) -> str:
        """The text of a prompt's last token, or more of its end; none where the engine does not tell it."""
        if prompt.ids is None:
            return prompt.text or ""
        last = prompt.ids[-1]
        if last not in self._text_of:
            try:
                self._text_of[last] = self._text([last])
            except Refusal:
                return ""
        return self._text_of[last]

    def _knows_tool_role(self, messages: Sequence[Message]) -> bool:
        """Whether the template shows a tool's message, asked of the engine when the first one comes."""
        if self._takes_tool_role is None and any(each["role"] == "tool" for each in messages):
            start: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            end = {"role": "assistant", "content": ""}
            try:
                found = self._text(self._tokenize([*start, {"role": "tool", "content": _HERE}, end]))
                self._takes_tool_role = _HERE in found
            except Refusal:
                self._takes_tool_role = False
        return bool(self._takes_tool_role)

    def _guessed(self, what: Written) -> Prompt:
        known = self._guess.role_prefix_and_suffix
        messages = [each if each["role"] in known else {**each, "role": "user"} for each in what.messages]
        prefix, _ = self._guess.get_prefix_and_suffix(str(what.role), messages)
        text = self._guess.get_prompt(messages) + prefix + what.begun
        return Prompt(text=text, stop=tuple(self._guess.stop_str))


def in_turns(messages: Sequence[Message]) -> list[Message]:
    """The same conversation for a template that knows only user and assistant, one after the other."""
    turns: list[Message] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{message['content']}"}
        else:
            turns.append({"role": role, "content": message["content"]})
    return turns
