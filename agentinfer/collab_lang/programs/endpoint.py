"""SGLang's own endpoint, given prompts and hints of ours.

It builds each request from a program and lets a subclass see it in one place, `_add_images`. So all its methods serve
us, selection with its token healing included, with a `Turn` in the program's place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

from agentinfer.collab_lang.programs.rendering import Prompt
from agentinfer.errors import AgentInferError


class EngineFailure(AgentInferError):
    """One engine did not do what it was asked. `is_down`: it does not answer; else it refused this request.

    `engine`: its name, where the message has it already.
    """

    def __init__(self, message: str, is_down: bool, engine: str | None = None) -> None:
        super().__init__(message)
        self.is_down = is_down
        self.engine = engine


@dataclass(slots=True)
class Turn:
    """Stands in for a program in SGLang's own endpoint methods: `text_` and `images_` are what they read of one.

    `choices` are the prompts of a selection, each with its choice, and `ending` is what the prompt without one ends in.
    """

    prompt: Prompt
    hints: Mapping[str, Any]
    choices: tuple[Prompt, ...] = ()
    ending: str = ""
    images_: list[Any] = field(default_factory=list)

    @property
    def text_(self) -> str:
        return self.prompt.text if self.prompt.text is not None else self.ending

    def fill(self, data: dict[str, Any]) -> None:
        """Puts the prompt, the session and the hints into a request."""
        text = data.get("text")
        if isinstance(text, list):
            if self.choices and all(each.ids is not None for each in self.choices):
                del data["text"]
                data["input_ids"] = [list(each.ids or ()) for each in self.choices]
        elif text is not None:
            if self.prompt.ids is not None:
                del data["text"]
                data["input_ids"] = list(self.prompt.ids)
            data["session_id"] = self.hints["session"]
            data["agentinfer"] = dict(self.hints)
        stop = data["sampling_params"].get("stop", ())
        if self.prompt.stop:
            own = [stop] if isinstance(stop, str) else list(stop or ())
            data["sampling_params"]["stop"] = [*own, *self.prompt.stop]


class PromptedEndpoint(RuntimeEndpoint):
    """A user's endpoint, connected already, with the two changes that the module's docstring names."""

    def __init__(self, plain: RuntimeEndpoint) -> None:
        self.__dict__.update(plain.__dict__)

    def _add_images(self, s: Turn, data: dict[str, Any]) -> None:
        s.fill(data)

    def _assert_success(self, res: Any) -> None:
        if res.status_code != 200:
            text = getattr(res, "text", None) or res.json()
            raise EngineFailure(f"HTTP {res.status_code}: {str(text)[:300]}", is_down=res.status_code >= 500)


def connect(url: str) -> PromptedEndpoint:
    try:
        return PromptedEndpoint(RuntimeEndpoint(url))
    except RuntimeError as error:
        raise EngineFailure(f"/get_model_info: {error}", is_down=True) from None
